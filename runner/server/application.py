"""The HTTP interface: paths, who may use them, and how answers are streamed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...ir.errors import SystolicError
from ..chat import chat_prompt
from ..request import Request
from . import bodies
from .answers import Answer, ChatForm, Choice, CompletionForm, Form
from .bodies import Asked, Body
from .errors import ApiError
from .service import Service, cancel

CLIENT_GONE = 499  # for the log: nobody reads it
BODY_SECONDS = 30.0  # that a client may take to send its request
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1", "testserver")
_OPEN = ("/health",)  # without a key
_LOG = logging.getLogger("systolic.server")
Handler = Callable[[HttpRequest, Service], Awaitable[Response]]


def application(service: Service, *, api_key: str | None = None, only_loopback: bool = True) -> Starlette:
    """The ASGI application. With ``only_loopback`` a request that names another host is refused, so that no
    web page can reach the server under a name of its own."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        scheduler = service.scheduler
        if scheduler is None:
            yield
            return
        scheduler.__enter__()
        try:
            yield
        finally:
            await asyncio.to_thread(scheduler.close, cancel=True)

    def route(path: str, handler: Handler, method: str) -> Route:
        async def endpoint(request: HttpRequest) -> Response:
            return await handler(request, service)

        return Route(path, endpoint, methods=[method])

    routes = [
        route("/v1/completions", completions, "POST"),
        route("/v1/chat/completions", chat_completions, "POST"),
        route("/v1/embeddings", embeddings, "POST"),
        route("/v1/models", models, "GET"),
        route("/v1/models/{name:path}", model, "GET"),
        route("/metrics", metrics, "GET"),
        route("/health", health, "GET"),
    ]
    known = [route.path for route in routes]
    guard = Middleware(Guard, service=service, api_key=api_key, only_loopback=only_loopback, known=known)
    handlers: dict[Any, Any] = {
        ApiError: _refused,
        404: _not_found,
        405: _wrong_method,
        Exception: _failed,
    }
    return Starlette(routes=routes, middleware=[guard], lifespan=lifespan, exception_handlers=handlers)


class Guard:
    """Lets in who has the key, and counts the answers."""

    def __init__(
        self, app: ASGIApp, service: Service, api_key: str | None, only_loopback: bool, known: Sequence[str]
    ) -> None:
        self._app = app
        self._service = service
        self._key = None if api_key is None else api_key.encode()
        self._only_loopback = only_loopback
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._known else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.responses.labels(path, message["status"]).inc()
            await send(message)

        error = self._objection(HttpRequest(scope))
        await (self._app if error is None else error.response())(scope, receive, counted)

    def _objection(self, request: HttpRequest) -> ApiError | None:
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._only_loopback and name not in LOOPBACK:
            return ApiError(403, f"this server answers to localhost only, not to {host!r}")
        if self._key is None or request.url.path in _OPEN:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key):
            return None
        headers = {"WWW-Authenticate": "Bearer"}
        return ApiError(
            401, "an API key is needed: Authorization: Bearer KEY", code="invalid_api_key", headers=headers
        )


# ---- what is asked ----


async def _read(request: HttpRequest, service: Service) -> Body:
    """The JSON of a request, at most as large as is allowed, and of a model that is served."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the body must be JSON: Content-Type: application/json")
    most, parts, size = service.limits.max_body, [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise ApiError(413, f"the body must be at most {most} bytes")
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
    try:
        body = Body(json.loads(b"".join(parts)))
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is no JSON") from None
    name = body.take("model", "str", service.name)
    if name not in service.names:
        raise _no_model(name, service)
    body.adapter = name if name != service.name else None
    return body


def _no_model(name: str, service: Service) -> ApiError:
    is_served = " is" if len(service.names) == 1 else " are"
    message = f"the model {name!r} is not served here; {', '.join(map(repr, service.names))}{is_served}"
    return ApiError(404, message, param="model", code="model_not_found")


async def completions(request: HttpRequest, service: Service) -> Response:
    """``POST /v1/completions``."""
    body = await _read(request, service)
    prompts = bodies.read_texts(body, "prompt")
    logprobs = body.take("logprobs", "int")
    asked = bodies.read_common(
        body, service.sampling, service.limits, bodies.COMPLETION_TOKENS, service.fresh_seed()
    )
    best_of = body.take("best_of", "int", asked.n)
    if best_of != asked.n:
        raise ApiError(400, "best_of must be n: every answer is given", param="best_of")
    body.close()
    settings = {**asked.settings, "logprobs": logprobs}
    requests = await asyncio.to_thread(service.submit, prompts, asked.n, settings, asked.priority)
    form = CompletionForm(None if logprobs is None else _vocabulary(service))
    return await _respond(request, service, asked, requests, form)


async def chat_completions(request: HttpRequest, service: Service) -> Response:
    """``POST /v1/chat/completions``."""
    body = await _read(request, service)
    messages = bodies.read_messages(body)
    with_logprobs = body.take("logprobs", "bool", False)
    alternatives = body.integer("top_logprobs", 0, 0, 20)
    if alternatives and not with_logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    variables = body.take("chat_template_kwargs", "dict", {})
    most = service.limits.max_tokens
    asked = bodies.read_common(body, service.sampling, service.limits, most, service.fresh_seed())
    body.close()
    try:
        prompt = chat_prompt(service.executable, messages, **variables)
    except (SystolicError, TypeError) as error:
        raise ApiError(400, str(error), param="messages") from None
    settings = prompt.settings({**asked.settings, "logprobs": alternatives if with_logprobs else None})
    requests = await asyncio.to_thread(service.submit, [prompt.ids], asked.n, settings, asked.priority)
    form = ChatForm(_vocabulary(service) if with_logprobs else None)
    return await _respond(request, service, asked, requests, form)


def _vocabulary(service: Service) -> Any:
    tokenizer = service.executable.tokenizer
    if tokenizer is None:
        raise ApiError(400, f"{service.name} has no tokenizer to write tokens with", param="logprobs")
    return tokenizer.vocabulary


# ---- answers ----


async def _respond(
    request: HttpRequest, service: Service, asked: Asked, requests: Sequence[Request], form: Form
) -> Response:
    answer = Answer(form, asked.settings["adapter"] or service.name)
    if asked.stream:
        pieces = _stream(service, asked, requests, answer)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return Events(pieces, requests, headers)
    collecting = asyncio.create_task(_collect(service, requests))
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(answer.whole(collecting.result(), requests))
    finally:
        cancel(requests)
        collecting.cancel()
        leaving.cancel()


class Events(StreamingResponse):
    """Server-sent events of some requests, which end with it: also if the client is gone before the first."""

    def __init__(
        self, pieces: AsyncIterator[bytes], requests: Sequence[Request], headers: dict[str, str]
    ) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers=headers)
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            cancel(self._requests)


async def _left(request: HttpRequest) -> None:
    """Waits until the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _collect(service: Service, requests: Sequence[Request]) -> list[Choice]:
    choices = [Choice() for _ in requests]
    async with contextlib.aclosing(service.steps(requests)) as steps:
        async for number, step in steps:
            choices[number].push(step)
    return choices


async def _stream(
    service: Service, asked: Asked, requests: Sequence[Request], answer: Answer
) -> AsyncIterator[bytes]:
    """Each piece as an event; an error that comes later than the status is one, too."""
    texts = [""] * len(requests)
    try:
        for number in range(len(requests)):
            opening = answer.first(number)
            if opening is not None:
                yield _event(opening)
        async with contextlib.aclosing(service.steps(requests)) as steps:
            async for number, step in steps:
                if step.text or step.finish_reason or step.logprob is not None:
                    yield _event(answer.piece(number, step, texts[number]))
                texts[number] += step.text
        if asked.include_usage:
            yield _event(answer.usage(requests))
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.body)


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


async def embeddings(request: HttpRequest, service: Service) -> Response:
    """``POST /v1/embeddings``."""
    body = await _read(request, service)
    texts = bodies.read_texts(body, "input")
    form = body.take("encoding_format", "str", "float")
    if form not in ("float", "base64"):
        raise ApiError(400, f"encoding_format must be float or base64, not {form!r}", param="encoding_format")
    body.close()
    vectors, read = await service.embed(texts, body.adapter)
    listed = [
        {"object": "embedding", "index": index, "embedding": _written(vector, form)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": read, "total_tokens": read}
    return JSONResponse(
        {"object": "list", "data": listed, "model": body.adapter or service.name, "usage": usage}
    )


def _written(vector: np.ndarray, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]


async def models(request: HttpRequest, service: Service) -> Response:
    """``GET /v1/models``."""
    return JSONResponse({"object": "list", "data": [_described(service, name) for name in service.names]})


async def model(request: HttpRequest, service: Service) -> Response:
    """``GET /v1/models/NAME``."""
    name = request.path_params["name"]
    if name not in service.names:
        raise _no_model(name, service)
    return JSONResponse(_described(service, name))


def _described(service: Service, name: str) -> dict[str, Any]:
    """A model, or an adapter of it under a name of its own."""
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "systolic",
        "max_model_len": service.executable.options.capacity,
        **({"parent": service.name} if name != service.name else {}),
    }


async def metrics(request: HttpRequest, service: Service) -> Response:
    """``GET /metrics``."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def health(request: HttpRequest, service: Service) -> Response:
    """``GET /health``: 503 once nothing can be answered any more."""
    if service.is_healthy:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "the scheduler has stopped"}, 503)


# ---- errors ----


async def _refused(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _not_found(request: HttpRequest, error: Exception) -> Response:
    return ApiError(404, f"there is nothing at {request.url.path}").response()


async def _wrong_method(request: HttpRequest, error: Exception) -> Response:
    return ApiError(405, f"{request.url.path} does not take {request.method}").response()


async def _failed(request: HttpRequest, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ApiError(500, "the server failed to answer; its log says why").response()

"""What the server does, without HTTP: requests to the scheduler, and embeddings."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import numpy as np

from ...ir.errors import SystolicError
from ..commands.sampling_options import sampling_settings
from ..executable import Executable
from ..generate import Generation, Step
from ..request import Request
from ..scheduler import QueueFull, Scheduler
from .bodies import Limits
from .errors import ApiError
from .metrics import Metrics

_LOG = logging.getLogger("systolic.server")
RETRY_SECONDS = 1  # until a client whose request finds the queue full should try again


class Service:
    """One model and the scheduler that serves it, or an encoder without one.

    Every program is made here. ``scheduler_options`` are those of ``exe.scheduler``.
    """

    def __init__(
        self,
        executable: Executable,
        *,
        name: str | None = None,
        limits: Limits | None = None,
        **scheduler_options: Any,
    ) -> None:
        self.executable = executable
        self.name = name or executable.model.name
        self.names = (self.name, *executable.model.adapters)  # clients call an adapter like a model
        if self.name in executable.model.adapters:
            raise SystolicError(f"the model and one of its adapters are both called {self.name!r}")
        self.created = int(time.time())
        self.limits = limits or Limits(executable.options.capacity)
        self.sampling: Mapping[str, Any] = sampling_settings(executable.model)
        refusal = _refusal(executable)
        self.no_text = refusal or _no_tokenizer(executable)  # why texts cannot be continued, if they cannot
        self.scheduler: Scheduler | None = None
        if self.no_text is None:
            self.scheduler = executable.scheduler(**scheduler_options)
        self.encodes = refusal is not None or executable.inputs.source is not None
        self.metrics = Metrics(self.scheduler)
        self._encoding = asyncio.Lock()

    @property
    def is_healthy(self) -> bool:
        """Whether requests can be answered."""
        return self.scheduler is None or (self.scheduler.is_running and self.scheduler.is_open)

    def submit(
        self, prompts: Sequence[str | Sequence[int]], n: int, settings: Mapping[str, Any], priority: int
    ) -> list[Request]:
        """``n`` requests for each prompt, or an ``ApiError`` and none.

        The first answer has the seed that was asked for, the next ones those that follow.
        """
        if self.scheduler is None:
            raise ApiError(400, str(self.no_text))
        if len(prompts) * n > self.limits.max_choices:
            most = self.limits.max_choices
            raise ApiError(400, f"{len(prompts)} prompts of {n} answers are more than {most}", param="n")
        requests: list[Request] = []
        try:
            for prompt in prompts:
                for number in range(n):
                    seeded = {**settings, "seed": (settings["seed"] + number) % 2**64}
                    requests.append(self.scheduler.submit(prompt, priority=priority, **seeded))
        except SystolicError as error:
            cancel(requests)
            if isinstance(error, QueueFull):
                headers = {"Retry-After": str(RETRY_SECONDS)}
                raise ApiError(429, str(error), code="queue_full", headers=headers) from None
            if not self.is_healthy:
                raise ApiError(503, str(error)) from None
            raise ApiError(400, str(error)) from None
        return requests

    async def steps(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Step], None]:
        """The steps of several requests as they come, each with the number of its request.

        Whoever leaves early cancels them. Raises what a request raises, and an ``ApiError`` for one that
        was cancelled because the server ends.
        """
        news: asyncio.Queue[tuple[int, Step | Exception | None]] = asyncio.Queue()

        async def follow(number: int, request: Request) -> None:
            try:
                async for step in request:
                    news.put_nowait((number, step))
                news.put_nowait((number, None))
            except Exception as error:
                news.put_nowait((number, error))

        tasks = [asyncio.create_task(follow(number, r)) for number, r in enumerate(requests)]
        going = len(requests)
        try:
            while going:
                number, item = await news.get()
                if isinstance(item, Exception):
                    raise _told(item)
                if item is not None:
                    yield number, item
                    continue
                if requests[number].finish_reason == "cancelled":
                    raise ApiError(503, "the server is shutting down")
                self.metrics.observe(requests[number], time.perf_counter())
                going -= 1
        finally:
            cancel(requests)
            for task in tasks:
                task.cancel()

    async def embed(
        self, texts: Sequence[str | Sequence[int]], adapter: str | None = None
    ) -> tuple[list[np.ndarray], int]:
        """A vector f32[D] of length 1 for each text, and how many tokens were read.

        It is the mean of what the encoder yields over the positions.
        """
        if not self.encodes:
            reason = "continues texts and has no encoder; embeddings need a model that reads whole texts"
            raise ApiError(400, f"{self.name} {reason}", param="model")
        try:
            ids = [list(self.executable.prompt_ids(text)) for text in texts]
            async with self._encoding:  # one at a time: programs of other lengths may be made
                vectors = [await asyncio.to_thread(self._encode, text, adapter) for text in ids]
        except SystolicError as error:
            raise ApiError(400, str(error), param="input") from None
        return vectors, sum(map(len, ids))

    def _encode(self, ids: Sequence[int], adapter: str | None) -> np.ndarray:
        values = self.executable.encode(ids, adapter=adapter)
        vector = values.mean(axis=0) if values.ndim > 1 else values
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def fresh_seed(self) -> int:
        """A seed for a request that names none."""
        return secrets.randbits(63)


def cancel(requests: Sequence[Request]) -> None:
    """Ends those that are not over."""
    for request in requests:
        if not request.is_done:
            request.cancel()


def _told(error: Exception) -> ApiError:
    """A failure in words for the client; what is not of ours is for the log."""
    if isinstance(error, SystolicError):
        return ApiError(500, str(error))
    _LOG.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says why")


def _refusal(executable: Executable) -> str | None:
    """Why a model continues nothing, if it does not."""
    try:
        executable.prompt_of([0], Generation())
    except SystolicError as error:
        return f"{executable.model.name} continues no texts: {str(error).splitlines()[0]}"
    return None


def _no_tokenizer(executable: Executable) -> str | None:
    if executable.tokenizer is not None:
        return None
    return f"{executable.model.name} has no tokenizer, so it cannot answer in text"

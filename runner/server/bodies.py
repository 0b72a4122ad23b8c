"""What clients ask for: OpenAI's request bodies, read strictly into settings of the runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..generate import Generation
from .errors import ApiError

# What says nothing about the answer.
_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
_ABSENT: dict[str, tuple[Any, ...]] = {  # what is known, but only as these values
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}
# Settings of the runner that a request may name beside OpenAI's.
_NUMBERS = {
    field.name: str(field.type) for field in fields(Generation) if field.type in ("int", "float", "bool")
}
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
MOST_STOPS = 16
COMPLETION_TOKENS = 16  # of a completion that does not say how long it may be, as OpenAI has it


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most: tokens of an answer, answers, bytes of its body."""

    max_tokens: int
    max_choices: int = 64
    max_body: int = 4 << 20


@dataclass(frozen=True)
class Asked:
    """What is asked for, whatever the form: ``settings`` are fields of ``Generation``."""

    settings: Mapping[str, Any]
    n: int
    stream: bool
    include_usage: bool
    priority: int


class Body:
    """A JSON object from which fields are taken; what is left over in the end is an error.

    ``adapter`` is the one that the model of the request is.
    """

    def __init__(self, values: Any) -> None:
        if not isinstance(values, dict):
            raise ApiError(400, "the body must be a JSON object")
        self.adapter: str | None = None
        self._values = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str, kind: str, default: Any = None) -> Any:
        """A field: ``kind`` is int, float, bool, str, list, dict or any."""
        value = self._values.pop(name, default)
        if value is default or kind == "any":
            return value
        kinds = {**_KINDS, "str": (str,), "list": (list,), "dict": (dict,)}[kind]
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind != "bool"):
            raise ApiError(400, f"{name} must be {_NAMES[kind]}, not {_shown(value)}", param=name)
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number between bounds."""
        value = self.take(name, "int", default)
        if not low <= value <= high:
            raise ApiError(400, f"{name} must be from {low} to {high}, not {value}", param=name)
        return value

    def close(self) -> None:
        """Refuses what nobody has taken."""
        for name, values in _ABSENT.items():
            if name in self._values and self._values.pop(name) not in values:
                raise ApiError(400, f"{name} is not supported by this server", param=name, code="unsupported")
        for name in self._values:
            if name not in _IGNORED:
                raise ApiError(400, f"{name} is no parameter that this server knows", param=name)


_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "list": "a list",
    "dict": "an object",
}


def read_common(
    body: Body, sampling: Mapping[str, float], limits: Limits, default_tokens: int, fresh_seed: int
) -> Asked:
    """What completions and chats have in common.

    ``sampling`` is the model's own, which comes before OpenAI's defaults; ``fresh_seed`` is for a request
    that names none.
    """
    settings: dict[str, Any] = {"temperature": 1.0, **sampling, "adapter": body.adapter}
    settings["max_new_tokens"] = _length(body, limits.max_tokens, default_tokens)
    settings["seed"] = body.take("seed", "int", fresh_seed) % 2**64  # OpenAI's may be negative
    settings["stop"] = _stops(body.take("stop", "any", []))
    settings |= _form(body)
    bias = body.take("logit_bias", "dict", {})
    try:
        settings["logit_bias"] = {int(token): float(value) for token, value in bias.items()}
    except (TypeError, ValueError):
        raise ApiError(400, "logit_bias must map token ids to numbers", param="logit_bias") from None
    for name in sorted(_NUMBERS.keys() - {"max_new_tokens", "seed"}):
        value = body.take(name, _NUMBERS[name])
        if value is not None:
            settings[name] = value
    stream = body.take("stream", "bool", False)
    usage = body.take("stream_options", "dict", {})
    return Asked(
        settings,
        n=body.integer("n", 1, 1, limits.max_choices),
        stream=stream,
        include_usage=bool(usage.get("include_usage")),
        priority=body.integer("priority", 0, -100, 100),
    )


def _form(body: Body) -> dict[str, Any]:
    """What the answer must fit, as settings of the runner."""
    form = body.take("response_format", "dict", {"type": "text"})
    settings: dict[str, Any] = {name: body.take(name, "str") for name in ("regex", "grammar")}
    if form.get("type") == "json_object":
        settings["json_schema"] = {"type": "object"}
    elif form.get("type") == "json_schema":
        named = form.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if not isinstance(schema, dict):
            raise ApiError(
                400, "response_format.json_schema.schema must be a JSON schema", param="response_format"
            )
        settings["json_schema"] = schema
    elif form.get("type") != "text":
        raise ApiError(
            400,
            f"response_format.type must be text, json_object or json_schema, not {_shown(form.get('type'))}",
            param="response_format",
        )
    return {name: value for name, value in settings.items() if value is not None}


def _length(body: Body, most: int, default: int) -> int:
    name = "max_completion_tokens"
    asked = body.take(name, "int")
    for other in ("max_tokens", "max_new_tokens"):
        value = body.take(other, "int")
        if asked is None and value is not None:
            name, asked = other, value
    if asked is None:
        return min(default, most)
    if not 1 <= asked <= most:
        raise ApiError(400, f"{name} must be from 1 to {most} on this server, not {asked}", param=name)
    return asked


def _stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise ApiError(400, "stop must be a string or a list of strings", param="stop")
    if len(stops) > MOST_STOPS:
        raise ApiError(400, f"stop must be at most {MOST_STOPS} strings, not {len(stops)}", param="stop")
    return stops


def read_texts(body: Body, name: str) -> list[str | list[int]]:
    """The prompts of a completion, or the inputs of embeddings: one or several, as text or token ids."""
    value = body.take(name, "any")
    if isinstance(value, str) or _are_ids(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(v, str) or _are_ids(v) for v in value):
        return value
    raise ApiError(400, f"{name} must be a text, a list of token ids, or a list of these", param=name)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def read_messages(body: Body) -> list[dict[str, Any]]:
    """The messages of a chat, the parts of each joined; ``developer`` is another word for ``system``."""
    messages = body.take("messages", "list")
    if not messages:
        raise ApiError(400, "messages must be a list of at least one message", param="messages")
    return [_message(number, message) for number, message in enumerate(messages)]


def _message(number: int, message: Any) -> dict[str, Any]:
    param = f"messages[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ApiError(400, f"{param} must be an object with a role", param=param)
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_of(part, param) for part in content)
    if not isinstance(content, str | None):
        raise ApiError(400, f"{param}.content must be a text, not {_shown(content)}", param=param)
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": content or ""}


def _text_of(part: Any, param: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise ApiError(400, f"{param}.content may have parts of text only", param=param)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"

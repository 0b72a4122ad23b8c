"""Answers in OpenAI's forms: whole, and in pieces while they are made."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..generate import Step
from ..request import Request
from ..sources import shown
from ..vocabulary import Vocabulary

REASONS = {"eos": "stop", "stop": "stop", "length": "length", "capacity": "length"}


@dataclass
class Choice:
    """One of the answers to a request, as far as it has come."""

    text: str = ""
    steps: list[Step] = field(default_factory=list)
    finish_reason: str | None = None

    def push(self, step: Step) -> None:
        """Adds a step."""
        self.text += step.text
        self.steps.append(step)
        if step.finish_reason is not None:
            self.finish_reason = REASONS[step.finish_reason]


class Form(Protocol):
    """How a kind of answer is written."""

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A whole answer."""
        ...

    def first(self, index: int) -> dict[str, Any] | None:
        """What comes before the first piece, if anything does."""
        ...

    def piece(self, index: int, step: Step, before: str) -> dict[str, Any]:
        """What a step adds to the text ``before``."""
        ...

    whole: str
    chunk: str
    prefix: str


class Answer:
    """The envelope of one response: its id, time and model are the same in every piece."""

    def __init__(self, form: Form, model: str) -> None:
        self._form = form
        self._shared = {
            "id": f"{form.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }

    def whole(self, choices: Sequence[Choice], requests: Sequence[Request]) -> dict[str, Any]:
        """The whole response."""
        listed = [self._form.choice(index, choice) for index, choice in enumerate(choices)]
        return {**self._shared, "object": self._form.whole, "choices": listed, "usage": usage_of(requests)}

    def first(self, index: int) -> dict[str, Any] | None:
        """The piece that opens an answer, if there is one."""
        choice = self._form.first(index)
        return None if choice is None else self._chunk([choice])

    def piece(self, index: int, step: Step, before: str) -> dict[str, Any]:
        """The piece of a step."""
        return self._chunk([self._form.piece(index, step, before)])

    def usage(self, requests: Sequence[Request]) -> dict[str, Any]:
        """The last piece, where it was asked for."""
        return {**self._chunk([]), "usage": usage_of(requests)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._shared, "object": self._form.chunk, "choices": choices}


def usage_of(requests: Sequence[Request]) -> dict[str, Any]:
    """How many tokens were read and made; prompts of several answers count once."""
    prompts = {(shown(request.source), request.prompt): request for request in requests}
    read = sum(len(request.source) or len(request.prompt) for request in prompts.values())
    made = sum(len(request.tokens) for request in requests)
    reused = sum(min(r.reused for r in requests if r.prompt == one.prompt) for one in prompts.values())
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


@dataclass(frozen=True)
class CompletionForm:
    """``/v1/completions``; ``vocabulary`` writes the tokens where log-probabilities are asked for."""

    vocabulary: Vocabulary | None
    whole = "text_completion"
    chunk = "text_completion"
    prefix = "cmpl"

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "text": choice.text,
            "logprobs": self._logprobs(choice.steps, ""),
            "finish_reason": choice.finish_reason,
        }

    def first(self, index: int) -> None:
        return None

    def piece(self, index: int, step: Step, before: str) -> dict[str, Any]:
        reason = None if step.finish_reason is None else REASONS[step.finish_reason]
        logprobs = self._logprobs([step], before)
        return {"index": index, "text": step.text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, steps: Sequence[Step], before: str) -> dict[str, Any] | None:
        vocabulary = self.vocabulary
        if vocabulary is None:
            return None
        offsets, at = [], len(before)
        for step in steps:
            offsets.append(at)
            at += len(step.text)
        return {
            "tokens": [_shown(vocabulary, step.token) for step in steps],
            "token_logprobs": [step.logprob for step in steps],
            "top_logprobs": [
                {_shown(vocabulary, other.token): other.logprob for other in step.alternatives}
                for step in steps
            ],
            "text_offset": offsets,
        }


@dataclass(frozen=True)
class ChatForm:
    """``/v1/chat/completions``."""

    vocabulary: Vocabulary | None
    whole = "chat.completion"
    chunk = "chat.completion.chunk"
    prefix = "chatcmpl"

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.steps),
            "finish_reason": choice.finish_reason,
        }

    def first(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, index: int, step: Step, before: str) -> dict[str, Any]:
        reason = None if step.finish_reason is None else REASONS[step.finish_reason]
        delta = {"content": step.text} if step.text else {}
        return {"index": index, "delta": delta, "logprobs": self._logprobs([step]), "finish_reason": reason}

    def _logprobs(self, steps: Sequence[Step]) -> dict[str, Any] | None:
        if self.vocabulary is None:
            return None
        return {"content": [self._token(self.vocabulary, step) for step in steps], "refusal": None}

    def _token(self, vocabulary: Vocabulary, step: Step) -> dict[str, Any]:
        others = [_with_bytes(vocabulary, other.token, other.logprob) for other in step.alternatives]
        return {**_with_bytes(vocabulary, step.token, step.logprob), "top_logprobs": others}


def _with_bytes(vocabulary: Vocabulary, token: int, logprob: float | None) -> dict[str, Any]:
    return {
        "token": _shown(vocabulary, token),
        "logprob": logprob,
        "bytes": list(vocabulary.bytes_of(token)),
    }


def _shown(vocabulary: Vocabulary, token: int) -> str:
    """A token as text; ``bytes:\\xe2`` for a part of a character, as OpenAI writes it."""
    data = vocabulary.bytes_of(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

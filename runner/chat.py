"""Conversations as prompts: through the model's chat template, or as a plain transcript without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ir.errors import SystolicError
from ..models.chat_template import Message

if TYPE_CHECKING:
    from .executable import Executable

SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}  # of a transcript


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as a model reads it, up to where its answer begins, and what ends that answer."""

    ids: tuple[int, ...]
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()

    def settings(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a generation that also ends where the answer does."""
        stop = generation.get("stop", ())
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        tokens = (*generation.get("stop_tokens", ()), *self.stop_tokens)
        return {**generation, "stop": (*stops, *self.stop), "stop_tokens": tokens}


def chat_prompt(executable: Executable, messages: Sequence[Message], **variables: Any) -> ChatPrompt:
    """The prompt of a conversation; ``variables`` are given to the chat template, as ``tools`` are.

    A model without a template reads a transcript, ``User: …`` and ``Assistant: …``, and its answer ends
    where it begins to speak for the user. Raises ``SystolicError`` for a conversation without messages,
    or one that the template refuses.
    """
    tokenizer, template = executable.tokenizer, executable.model.chat_template
    if tokenizer is None:
        raise SystolicError(f"{executable.model.name} has no tokenizer, so it cannot chat")
    if not messages:
        raise SystolicError("a conversation must have at least one message")
    if template is None:
        stop = f"\n{SPEAKERS['user']}:"
        return ChatPrompt(tuple(tokenizer.encode(transcript(messages))), stop=(stop,))
    text = executable.model.chat_prompt(messages, **variables)
    end = tokenizer.token_id(template.tokens.get("eos_token", ""))  # may be of a turn, not of a text
    return ChatPrompt(tuple(tokenizer.encode_exactly(text)), stop_tokens=() if end is None else (end,))


def transcript(messages: Sequence[Message]) -> str:
    """A conversation in plain text, a line for each message, up to where the answer begins."""
    lines = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in SPEAKERS or not isinstance(content, str):
            roles = ", ".join(SPEAKERS)
            raise SystolicError(f"a message must have a role ({roles}) and a text as content: {message!r}")
        # What the model said is kept as it was, so that it need not be read again.
        lines.append(f"{SPEAKERS[role]}:{'' if content[:1].isspace() else ' '}{content}\n")
    return "".join(lines) + f"{SPEAKERS['assistant']}:"

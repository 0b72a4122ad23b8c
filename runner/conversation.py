"""A conversation that goes on: what was read and said stays in the states from turn to turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import SystolicError
from .chat import chat_prompt
from .generate import Generation, Step
from .session import ANCHOR, Edit, Session

if TYPE_CHECKING:
    from .executable import Executable


class Conversation:
    """Messages, and the session that answers them: the keywords are those of ``exe.generate``.

    ``say``, ``retry``, ``edit``, ``steer`` and ``go_on`` yield the steps of an answer. Leaving the loop
    early keeps what was said so far. Only what differs from the text that was last read is read.
    """

    def __init__(self, executable: Executable, *, system: str | None = None, **generation: Any) -> None:
        self._executable = executable
        self._generation = generation
        self._system = system
        self._turns: list[dict[str, str]] = []
        self._session: Session | None = None
        self._prompt: tuple[int, ...] = ()  # that the last answer stands behind
        self.last_edit: Edit | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """All messages so far, each with ``role`` and ``content``."""
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return [*system, *(dict(turn) for turn in self._turns)]

    @property
    def last_said(self) -> str | None:
        """What the user said last."""
        said = (turn["content"] for turn in reversed(self._turns) if turn["role"] == "user")
        return next(said, None)

    def save(self, file: Path) -> None:
        """Writes the messages as JSON."""
        file.write_text(json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    # ---- answers ----

    def say(self, text: str) -> Iterator[Step]:
        """Adds a message of the user, and answers it."""
        before = list(self._turns)
        self._turns.append({"role": "user", "content": text})
        return self._answer(before)

    def retry(self) -> Iterator[Step]:
        """Answers the last message anew, with other random numbers."""
        seed = self._generation.get("seed", 0)
        return self.edit(self._last_user_text(), seed=(seed + 1) % 2**64)

    def edit(self, text: str, **generation: Any) -> Iterator[Step]:
        """Replaces the last message of the user, and answers it."""
        self._last_user_text()
        before = list(self._turns)
        while self._turns.pop()["role"] != "user":
            pass
        self._turns.append({"role": "user", "content": text})
        self.change(**generation)
        return self._answer(before)

    def steer(self, text: str) -> Iterator[Step]:
        """Makes the last answer go on with ``text``, and with what the model says behind it."""
        turn, session = self._last_answer()
        said = self._without_end(session, turn["content"])
        missing = turn["content"][len(said) :] + text
        if missing:
            self.last_edit = session.force(missing)
        turn["content"] += text
        return self._follow(session, turn)

    def go_on(self) -> Iterator[Step]:
        """Lets the last answer go on where it ended or was interrupted."""
        return self.steer("")

    def change(self, **generation: Any) -> None:
        """Other settings from the next token on, by name."""
        settings = {**self._generation, **generation}
        Generation(**settings)  # raises for what is none
        self._generation = settings
        if self._session is not None and generation:
            self._session.change(**generation)

    def set_system(self, text: str | None) -> None:
        """Replaces what the conversation begins with; the next answer reads it."""
        self._system = text or None

    def clear(self) -> None:
        """Forgets all messages but the system's."""
        self._turns = []

    # ---- the text ----

    def _answer(self, before: Sequence[dict[str, str]]) -> Iterator[Step]:
        """Reads what is new of the conversation and answers; ``before`` are the turns if that fails."""
        try:
            prompt = chat_prompt(self._executable, self.messages)
            if self._session is None:
                self._session = self._executable.session(prompt.ids, **prompt.settings(self._generation))
                self._prompt, self.last_edit = prompt.ids, None
            else:
                self._prompt = self._behind_what_was_said(self._session, prompt.ids)
                self.last_edit = self._session.begin(self._prompt)
        except SystolicError:
            self._turns = list(before)
            raise
        turn = {"role": "assistant", "content": ""}
        self._turns.append(turn)
        return self._follow(self._session, turn)

    def _follow(self, session: Session, turn: dict[str, str]) -> Iterator[Step]:
        ended = False
        try:
            for step in session.steps():
                ended = step.finish_reason is not None
                turn["content"] += step.text
                yield step
        finally:
            if not ended:  # the text of the last tokens may have been held back
                said = session.tokens[len(self._prompt) :]
                turn["content"] = self._executable.text_behind(self._prompt, said)

    def _behind_what_was_said(self, session: Session, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The prompt, but with what was said as the tokens that said it, if they are the same text.

        A text has many tokens; those that the tokenizer prefers may not be those that the model chose.
        """
        tokenizer = self._executable.tokenizer
        assert tokenizer is not None
        known = session.tokens
        common = next(
            (at for at, pair in enumerate(zip(known, ids, strict=False)) if pair[0] != pair[1]), None
        )
        if common is None or common < len(self._prompt):
            return ids
        start = max(0, common - ANCHOR)  # both are the same up to here
        spoken = tokenizer.decode_exactly(known[start:])
        for at in range(common, len(ids) + 1):
            text = tokenizer.decode_exactly(ids[start:at])
            if text == spoken:
                return (*known, *ids[at:])
            if len(text) > len(spoken):
                break
        return ids

    def _without_end(self, session: Session, content: str) -> str:
        """Takes back the tokens that ended an answer without being part of it; the text of the others."""
        ends = session.generation.end_tokens(self._executable.model.eos_ids)
        tokens = session.tokens
        start = count = len(self._prompt)
        said = ""
        for at in range(len(tokens), start, -1):
            text = self._executable.text_behind(self._prompt, tokens[start:at])
            if tokens[at - 1] not in ends and content.startswith(text):
                count, said = at, text
                break
        if count < len(tokens):
            session.edit(count, remove=len(tokens) - count)
        return said

    def _last_user_text(self) -> str:
        text = self.last_said
        if text is None:
            raise SystolicError("nothing has been said yet")
        return text

    def _last_answer(self) -> tuple[dict[str, str], Session]:
        if self._session is None or not self._turns or self._turns[-1]["role"] != "assistant":
            raise SystolicError("there is no answer yet that could go on")
        return self._turns[-1], self._session

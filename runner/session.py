"""A text that is generated, paused, edited, steered, and goes on from where it still holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import SystolicError
from .adapters import adapter_choice
from .batch import Batch
from .choice import Chooser
from .generate import Generation, Reply, Step
from .sources import shown

if TYPE_CHECKING:
    from .executable import Executable

MOST_LOGITS = 64  # that are kept to choose again from
ANCHOR = 32  # tokens before inserted text that are tokenized with it, so that spaces come out right
Check = Callable[[list[int], str], int]


@dataclass(frozen=True)
class Edit:
    """What a change costs: ``kept`` of the text's ``length`` positions are not computed again."""

    length: int
    kept: int

    @property
    def recomputed(self) -> int:
        """How many positions the next step reads."""
        return self.length - self.kept

    @property
    def preserved(self) -> float:
        """The fraction of the text that is not computed again."""
        return self.kept / self.length


@dataclass(frozen=True)
class Checked:
    """A text that passed its check: the new tokens, and how often something was taken back."""

    tokens: list[int]
    retries: int


class Session:
    """One text in one row: made by ``exe.session(prompt, …)`` with the keywords of ``exe.generate``.

    Everything may be called from any thread while another iterates over ``steps``: a change waits for
    the step that is being taken, and holds from the next one on. Positions are counted in tokens, the
    prompt's included. The draw of each token depends on the seed and on its position, so a text that is
    not touched is that of ``exe.generate``.
    """

    def __init__(
        self,
        executable: Executable,
        prompt: str | Sequence[int],
        *,
        checkpoint_every: int | None = None,
        **generation: Any,
    ) -> None:
        self._executable = executable
        self._generation = Generation(**generation)
        self._source, self._tokens = executable.prompt_of(prompt, self._generation)
        self._prompt_length = len(self._tokens)
        self._adapter = adapter_choice(executable.model, self._generation.adapter).number
        self._rows = Batch(executable, checkpoint_every)
        self._rows.begin(0, self._source, self._adapter)
        self._logits: dict[int, np.ndarray] = {}  # behind so many positions of the text
        self._reply: Reply | None = None
        self._chooser: Chooser | None = None  # anew for other settings
        self._changed = threading.Condition()
        self._paused = False

    # ---- looking ----

    @property
    def tokens(self) -> list[int]:
        """The whole text as token ids."""
        return list(self._tokens)

    @property
    def text(self) -> str:
        """The whole text; ``SystolicError`` without a tokenizer."""
        if self._executable.tokenizer is None:
            raise SystolicError(f"{self._executable.model.name} has no tokenizer; read session.tokens")
        return self._executable.tokenizer.decode(self._tokens)

    @property
    def generation(self) -> Generation:
        """The settings that the next token is chosen with."""
        return self._generation

    @property
    def is_paused(self) -> bool:
        return self._paused

    # ---- going on ----

    def steps(self, max_new_tokens: int | None = None) -> Iterator[Step]:
        """New tokens, until the text ends or ``max_new_tokens`` (by default the session's) were said.

        Waits while the session is paused. Leaving the loop is a pause, too: another call goes on.
        """
        left = self._generation.max_new_tokens if max_new_tokens is None else max_new_tokens
        with self._changed:
            self._reply = None
        while left > 0:
            with self._changed:
                self._changed.wait_for(lambda: not self._paused)
                step = self._step(left)
            yield step
            left -= 1
            if step.finish_reason is not None:
                break

    def _step(self, left: int) -> Step:
        token = self._choose()
        if self._reply is None:
            settings = replace(self._generation, max_new_tokens=left)
            self._reply = Reply(self._executable, self._tokens, settings)
        self._tokens.append(token)
        return self._reply.push(token, is_complete=self._completes())

    def generate_checked(self, check: Check, *, retries: int = 32) -> Checked:
        """New tokens that ``check`` agrees with.

        ``check(new tokens, new text)`` is asked after each token and says how many of the newest to take
        back: 0 goes on; otherwise the choice that was made there is banned, and another is made. Raises
        ``SystolicError`` after ``retries`` of these, with the session back where it was.
        """
        with self._changed:
            start, used = len(self._tokens), 0
            banned: dict[int, set[int]] = {}  # by position
            said = _Said(self._executable, self._tokens, self._generation)
            while not said.is_over:
                here = banned.get(len(self._tokens), set())
                self._tokens.append(self._choose(here, attempt=len(here)))
                said.push(self._tokens[-1], self._completes())
                back = int(check(list(said.tokens), said.text))
                if back <= 0:
                    continue
                first = max(start, len(self._tokens) - back)
                banned = {position: tokens for position, tokens in banned.items() if position <= first}
                banned.setdefault(first, set()).add(self._tokens[first])
                used += 1
                if used > retries or len(banned[first]) >= self._executable.logit_count:
                    self._set(self._tokens[:start])
                    raise SystolicError(f"the check rejected {used} continuations; the text is as it was")
                self._set(self._tokens[:first])
                kept = self._tokens[start:]
                said = _Said(self._executable, self._tokens[:start], self._generation)
                for token in kept:
                    said.push(token)
            return Checked(said.tokens, used)

    # ---- steering ----

    def pause(self) -> None:
        """Lets the step that is being taken end, and no other begin."""
        with self._changed:
            self._paused = True

    def resume(self) -> None:
        """Goes on."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def change(self, **generation: Any) -> None:
        """Other settings from the next token on, by name."""
        with self._changed:
            self._choose_adapter(generation.get("adapter", self._generation.adapter))
            self._generation = replace(self._generation, **generation)
            self._reply = self._chooser = None

    def _choose_adapter(self, name: str | None) -> None:
        """From the next token on with another adapter: the whole text is read again with it."""
        model = self._executable.model
        old, new = (adapter_choice(model, one) for one in (self._generation.adapter, name))
        if old.prompt != new.prompt:
            raise SystolicError(f"a session cannot change to {name!r}: what stands before its text differs")
        if old != new:
            self._adapter, self._logits = new.number, {}

    def edit(self, position: int, remove: int = 0, insert: str | Sequence[int] = ()) -> Edit:
        """Replaces ``remove`` tokens from ``position`` on; the tokens around them stay as they are.

        Only positions from there on are computed again, and those that a state must go back further
        for. ``SystolicError`` for what the text does not have, or has no room for.
        """
        with self._changed:
            if not 0 <= position <= position + remove <= len(self._tokens):
                raise SystolicError(
                    f"the text has {len(self._tokens)} tokens; {remove} from position {position} on are "
                    "not among them"
                )
            before, behind = self._tokens[:position], self._tokens[position + remove :]
            return self._set([*before, *self._ids(insert, before), *behind])

    def force(self, tokens: str | Sequence[int]) -> Edit:
        """Adds tokens as if they had been chosen."""
        with self._changed:
            return self.edit(len(self._tokens), insert=tokens)

    def rewrite(self, text: str | Sequence[int]) -> Edit:
        """Replaces the whole text; what it begins with as before is not computed again."""
        with self._changed:
            return self._set(list(self._executable.prompt_ids(text)))

    def begin(self, prompt: str | Sequence[int]) -> Edit:
        """Replaces the whole text by a prompt: what follows is new, for penalties that count it."""
        with self._changed:
            learned = adapter_choice(self._executable.model, self._generation.adapter).prompt
            edit = self.rewrite([*learned, *self._executable.prompt_ids(prompt)])
            self._prompt_length = len(self._tokens)
            self._chooser = None
            return edit

    # ---- the row ----

    def _ids(self, more: str | Sequence[int], before: Sequence[int]) -> list[int]:
        """Token ids to put behind ``before``: of text, what it adds to the tokens of the text before it."""
        ids = list(self._executable.prompt_ids(more))
        if not isinstance(more, str) or self._executable.tokenizer is None:
            return ids
        anchor = self._executable.tokenizer.decode(before[-ANCHOR:])
        alone, whole = (list(self._executable.prompt_ids(text)) for text in (anchor, anchor + more))
        if whole[: len(alone)] == alone:
            return whole[len(alone) :]
        return ids[1:] if ids[:1] == [self._executable.model.bos_id] else ids

    def _set(self, tokens: Sequence[int]) -> Edit:
        """Makes this the text; the row follows when the next token is wanted."""
        self._tokens = self._executable.inputs.checked(tokens, "text")
        self._reply = None
        same = _common(self._rows.rows[0].tokens, self._tokens)
        self._logits = {length: known for length, known in self._logits.items() if length <= same}
        length = len(self._tokens)
        if length in self._logits:
            return Edit(length, length)
        return Edit(length, self._rows.plan(0, min(same, length - 1)).resume)

    def _choose(self, banned: Collection[int] = (), attempt: int = 0) -> int:
        logits = self._read()
        if self._chooser is None:
            self._chooser = Chooser(self._executable, self._prompt_length, self._generation)
        return self._chooser.choose(logits, self._tokens, banned, attempt)

    def _completes(self) -> bool:
        return self._chooser is not None and self._chooser.completes(self._tokens)

    def _read(self) -> np.ndarray:
        """The logits [V] behind the text, after reading what the row has not read of it."""
        length = len(self._tokens)
        if length not in self._logits:
            row = self._rows.rows[0]
            if row.source != shown(self._source) or row.adapter != self._adapter:
                # a call that was interrupted has lost the row, or another adapter was asked for
                self._rows.begin(0, self._source, self._adapter)
                row = self._rows.rows[0]
            position = min(_common(row.tokens, self._tokens), length - 1)
            again = self._rows.rewind(0, position)
            self._logits[length] = self._rows.read({0: [*again, *self._tokens[position:]]})[0]
            if len(self._logits) > MOST_LOGITS:
                del self._logits[min(self._logits)]
        return self._logits[length]


class _Said:
    """New tokens, their text, and whether it is over with them."""

    def __init__(self, executable: Executable, prompt: Sequence[int], generation: Generation) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.is_over = generation.max_new_tokens == 0
        self._reply = Reply(executable, prompt, generation)

    def push(self, token: int, is_complete: bool = False) -> None:
        step = self._reply.push(token, is_complete=is_complete)
        self.tokens.append(token)
        self.text += step.text
        self.is_over = step.finish_reason is not None


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))

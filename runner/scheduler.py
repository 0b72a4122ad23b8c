"""Continuous batching: rows are slots that requests join and leave between calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import SystolicError
from .adapters import adapter_choice
from .batch import Batch
from .batch_choice import BatchChooser
from .choice import Chooser
from .generate import Generation, Reply
from .prefixes import PrefixTree
from .request import Request

if TYPE_CHECKING:
    from .executable import Executable

PROMPT_TOKENS = 32
TOKENS_PER_CALL = 8
QUEUE = 256
PREFIX_BYTES = 256 << 20
PATIENCE = 64  # steps after which a waiting request counts as one priority higher


class QueueFull(SystolicError):
    """No room for another waiting request."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request that has no row yet, and the step at which it came."""

    request: Request
    chooser: Chooser
    since: int


@dataclass
class Slot:
    """A row in use: its text so far, and what of it is still to be read."""

    request: Request
    text: list[int]
    pending: list[int]
    reply: Reply
    chooser: Chooser
    is_usual: bool = False  # whether its tokens can be chosen on the device
    count: int = 0  # new tokens

    @property
    def reads_prompt(self) -> bool:
        return self.count == 0

    @property
    def draws(self) -> bool:
        return self.chooser.row.draws


@dataclass
class Statistics:
    """What a scheduler has done so far: calls, positions of prompts read and reused, tokens, requests."""

    steps: int = 0
    prompt_positions: int = 0
    reused_positions: int = 0
    tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)  # by reason; ``error`` for what failed


class Scheduler:
    """Serves many requests with the rows of one executable: made by ``exe.scheduler(…)``.

    A step is one call of a program. It reads the next token of every row that is past its prompt, and at
    most ``prompt_tokens`` (or one for each) of the others' prompts, so that nobody waits long for somebody's
    long prompt. While nobody reads a prompt or waits, and all tokens can be chosen on the device, one call
    makes up to ``tokens_per_call`` tokens for each row. Of waiting requests the one with the highest priority
    goes first, then the oldest; waiting for 64 steps counts as one priority more. States of prompts and
    texts are kept for texts that begin alike, up to ``prefix_bytes``; 0 keeps none.

    In a ``with`` block a thread takes the steps; otherwise whoever iterates over a request does, or calls
    ``step``. Every program is made here, none later. Each request has the tokens it would have alone:
    ``exe.generate(prompt, …)``.
    """

    def __init__(
        self,
        executable: Executable,
        *,
        prompt_tokens: int = PROMPT_TOKENS,
        tokens_per_call: int = TOKENS_PER_CALL,
        queue: int = QUEUE,
        prefix_bytes: int = PREFIX_BYTES,
        checkpoint_every: int | None = None,
    ) -> None:
        numbers = {"prompt_tokens": prompt_tokens, "tokens_per_call": tokens_per_call, "queue": queue}
        for name, value in numbers.items():
            if value < 1:
                raise SystolicError(f"{name} must be at least 1, not {value}")
        self.executable = executable
        self.statistics = Statistics()
        self.prompt_tokens = prompt_tokens
        self.tokens_per_call = tokens_per_call
        self._queue = queue
        self._rows = Batch(executable, checkpoint_every, longest=prompt_tokens)
        self._rows.prepare()
        self._batch_chooser = BatchChooser(executable, self._rows)
        self._tree = PrefixTree(executable.undo, prefix_bytes) if prefix_bytes else None
        if executable.inputs.source is not None:
            self._tree = None  # what a prefix is worth depends on the source
        self._slots: list[Slot | None] = [None] * executable.options.batch
        self._waiting: list[Waiting] = []
        self._stepping = threading.Lock()
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing: str | None = None  # "drain" or "cancel"
        self._error: BaseException | None = None

    # ---- what callers do ----

    def submit(self, prompt: str | Sequence[int], *, priority: int = 0, **generation: Any) -> Request:
        """Adds a request; the keywords are those of ``exe.generate``.

        Raises ``QueueFull`` if too many wait already, ``SystolicError`` for a prompt or setting that
        cannot be run. Never waits for a step.
        """
        settings = Generation(**generation)
        source, ids = self.executable.prompt_of(prompt, settings)
        request = Request(self, ids, source, settings, priority)
        chooser = Chooser(self.executable, len(ids), settings)
        chooser.prepare()  # by the caller's thread, so that no other request waits for it
        with self._news:
            if not self.is_open:
                raise SystolicError(f"the scheduler is closed: {self._error or 'close() was called'}")
            if settings.max_new_tokens == 0:
                request.finish("length")
                return request
            if len(self._waiting) >= self._queue:
                raise QueueFull(f"{self._queue} requests wait already; try again later")
            self._waiting.append(Waiting(request, chooser, self.statistics.steps))
            self._news.notify_all()
        return request

    @property
    def running(self) -> int:
        """How many rows are in use."""
        return sum(slot is not None for slot in self._slots)

    @property
    def waiting(self) -> int:
        """How many requests wait for a row."""
        return len(self._waiting)

    @property
    def prefix_bytes(self) -> int:
        """Bytes of the states that are kept for texts to come."""
        return 0 if self._tree is None else self._tree.bytes

    @property
    def is_open(self) -> bool:
        """Whether more requests are taken: not once it is closed, or the device has failed."""
        return self._error is None and self._closing is None

    @property
    def is_running(self) -> bool:
        """Whether a thread takes the steps."""
        return self._thread is not None and self._thread.is_alive()

    def __enter__(self) -> Scheduler:
        if self._thread is not None:
            raise SystolicError("the scheduler has been started before")
        self._thread = threading.Thread(target=self._serve, name="systolic scheduler", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=error is not None)

    def close(self, *, cancel: bool = False) -> None:
        """Takes no more requests, and returns when all there are have been finished, or cancelled."""
        with self._news:
            self._closing = "cancel" if cancel else "drain"
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join()
        else:
            self._finish_all()

    def wake(self) -> None:
        """Makes a sleeping scheduler look at its requests again."""
        with self._news:
            self._news.notify_all()

    # ---- steps ----

    def step(self) -> bool:
        """One call for all rows; False if there was nothing to do. Waits for a step that is being taken."""
        with self._stepping:
            try:
                return self._step()
            except BaseException as error:
                self._fail(error)
                raise

    def _step(self) -> bool:
        if self._error is not None:
            return False
        self._leave_cancelled()
        self._admit()
        if self._can_run_ahead():
            self._run_ahead()
            return True
        tokens = self._plan()
        if not tokens:
            return False
        logits = self._rows.run(tokens)
        self.statistics.steps += 1
        ended = {}
        for row, read in tokens.items():
            slot = self._slot(row)
            slot.pending = slot.pending[len(read) :]
            self.statistics.prompt_positions += len(read) if slot.reads_prompt else 0
            if not slot.pending:
                ended[row] = slot
        self._go_on(ended, logits)
        return True

    def _go_on(self, ended: Mapping[int, Slot], logits: Any) -> None:
        """Chooses the next tokens of rows that have read all of their texts: logits [B, 1, V]."""
        drawn: dict[int, int] = {}
        lengths = {row: len(slot.text) for row, slot in ended.items() if slot.is_usual and slot.draws}
        if lengths:
            drawn = self._batch_chooser.choose(logits, lengths)
        if len(drawn) < len(ended):  # fetching waits for the device: only where something is read
            fetched = self._rows.fetch(logits)
        for row, slot in ended.items():
            if row in drawn:
                self._say(row, partial(slot.chooser.checked, drawn[row], slot.text))
            else:
                self._say(row, partial(slot.chooser.choose, fetched[row, 0], slot.text), fetched[row, 0])

    def _can_run_ahead(self) -> bool:
        """Whether nobody is kept waiting, and every token can be chosen on the device."""
        used = [slot for slot in self._slots if slot is not None]
        all_go_on = all(slot.is_usual and not slot.reads_prompt for slot in used)
        return self.tokens_per_call > 1 and bool(used) and all_go_on and not self._waiting

    def _run_ahead(self) -> None:
        """One call that makes several tokens for each row."""
        used = {row: slot for row, slot in enumerate(self._slots) if slot is not None}
        newest = {row: slot.pending[0] for row, slot in used.items()}
        limits = {
            row: min(
                self.tokens_per_call,
                self._rows.allowance(row),
                slot.request.generation.max_new_tokens - slot.count,
                self._rows.capacity - len(self._rows.rows[row].tokens),
            )
            for row, slot in used.items()
        }
        draws = any(slot.draws for slot in used.values())
        made = self._batch_chooser.make(newest, limits, draws=draws)
        self.statistics.steps += 1
        for at in range(self.tokens_per_call):
            for row, tokens in made.items():
                if at < len(tokens) and self._slots[row] is used[row]:  # else a stop string has ended it
                    self._say(row, partial(used[row].chooser.checked, tokens[at], used[row].text))

    def _say(self, row: int, choose: Callable[[], int], logits: np.ndarray | None = None) -> None:
        """Goes on with the chosen token of a row; ``logits`` [V] where they are on the host."""
        slot = self._slot(row)
        try:
            token = choose()
            chances = (None, ()) if logits is None else slot.chooser.chances(logits, token)
            slot.text.append(token)
            is_complete = slot.chooser.completes(slot.text)
            step = slot.reply.push(token, *chances, is_complete=is_complete)
        except SystolicError as error:  # of this text alone
            slot.request.fail(error)
            self._rows.clear(row)
            self._leave(row, "error")
            return
        if slot.reads_prompt:
            self._store(row)
        slot.count += 1
        slot.pending = [token]
        self.statistics.tokens += 1
        slot.request.push(step)
        if step.finish_reason is not None:
            self._store(row)
            self._leave(row, step.finish_reason)

    def _plan(self) -> dict[int, list[int]]:
        """What each row reads in the next call."""
        used = [(row, slot) for row, slot in enumerate(self._slots) if slot is not None]
        tokens = {row: slot.pending for row, slot in used if not slot.reads_prompt}
        prompts = sorted(
            ((row, slot) for row, slot in used if slot.reads_prompt), key=lambda item: len(item[1].pending)
        )
        budget = self.prompt_tokens
        for number, (row, slot) in enumerate(prompts):
            share = max(1, budget // (len(prompts) - number))  # what short prompts leave, long ones get
            tokens[row] = slot.pending[: min(share, self._rows.allowance(row))]
            budget -= len(tokens[row])
        return self._rows.first_call(tokens) if tokens else {}

    def _admit(self) -> None:
        free = [row for row, slot in enumerate(self._slots) if slot is None]
        while free:
            with self._news:
                if not self._waiting:
                    return
                best = max(self._waiting, key=self._urgency)
                self._waiting.remove(best)
            self._enter(free.pop(0), best.request, best.chooser)

    def _urgency(self, waiting: Waiting) -> tuple[int, int]:
        age = self.statistics.steps - waiting.since
        return waiting.request.priority + age // PATIENCE, age

    def _enter(self, row: int, request: Request, chooser: Chooser) -> None:
        adapter = adapter_choice(self.executable.model, request.generation.adapter)
        self._rows.begin(row, request.source, adapter.number)
        prompt = list(request.prompt)
        if self._tree is not None:
            request.reused = self._tree.restore(self._rows, row, prompt[:-1])
            self.statistics.reused_positions += request.reused
        reply = Reply(self.executable, prompt, request.generation)
        ends = request.generation.end_tokens(self.executable.model.eos_ids)
        is_usual = not chooser.needs_logits and self._batch_chooser.enter(row, chooser.row, ends)
        self._slots[row] = Slot(request, prompt, prompt[request.reused :], reply, chooser, is_usual)

    def _store(self, row: int) -> None:
        if self._tree is not None:
            self._tree.store(self._rows, row)

    def _leave(self, row: int, reason: str) -> None:
        self._slots[row] = None
        finished = self.statistics.finished
        finished[reason] = finished.get(reason, 0) + 1

    def _leave_cancelled(self) -> None:
        everything = self._closing == "cancel"
        for row, slot in enumerate(self._slots):
            if slot is not None and (everything or slot.request.is_cancelled):
                slot.request.finish("cancelled")
                self._leave(row, "cancelled")
        with self._news:
            gone = [entry for entry in self._waiting if everything or entry.request.is_cancelled]
            self._waiting = [entry for entry in self._waiting if entry not in gone]
        for entry in gone:
            entry.request.finish("cancelled")

    def _slot(self, row: int) -> Slot:
        slot = self._slots[row]
        assert slot is not None
        return slot

    # ---- the thread ----

    def _serve(self) -> None:
        """Takes steps until the scheduler is closed."""
        while self._closing is None and self._error is None:
            if not self._step_safely():
                with self._news:
                    if not self._waiting and self._closing is None:
                        self._news.wait()
        self._finish_all()

    def _finish_all(self) -> None:
        while self._step_safely():
            pass

    def _step_safely(self) -> bool:
        """A step whose error every request learns, and nobody else."""
        try:
            return self.step()
        except Exception:  # told to all requests by step
            return False

    def _fail(self, error: BaseException) -> None:
        """The states are lost: no request can go on."""
        with self._news:
            self._error = error
            requests = [entry.request for entry in self._waiting]
            self._waiting = []
        requests += [slot.request for slot in self._slots if slot is not None]
        self._slots = [None] * len(self._slots)
        for request in requests:
            request.fail(error)

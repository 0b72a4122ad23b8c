"""One text on its way through a scheduler: read by any number of threads, and by asyncio."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..ir.errors import SystolicError
from .generate import Generation, Step
from .sources import Source

if TYPE_CHECKING:
    from .scheduler import Scheduler


class Request:
    """A prompt and what has been said behind it so far.

    Iterating yields each ``Step`` as soon as it is there, from the first on, to every reader; ``async for``
    does the same. It ends with the text, and raises what went wrong. ``finish_reason`` is that of the last
    step, ``cancelled``, or None while the text goes on. Times are of ``time.perf_counter``.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        prompt: Sequence[int],
        source: Source,
        generation: Generation,
        priority: int,
    ) -> None:
        self.prompt = tuple(prompt)
        self.source = source
        self.generation = generation
        self.priority = priority
        self.reused = 0  # positions of the prompt that were known
        self.submitted = time.perf_counter()
        self.first_token: float | None = None
        self.finish_reason: str | None = None
        self._scheduler = scheduler
        self._steps: list[Step] = []
        self._error: BaseException | None = None
        self._cancelled = False
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    @property
    def tokens(self) -> list[int]:
        """The new tokens so far."""
        return [step.token for step in self._steps]

    @property
    def text(self) -> str:
        """The new text so far."""
        return "".join(step.text for step in tuple(self._steps))

    @property
    def is_done(self) -> bool:
        """Whether no further step will come."""
        return self.finish_reason is not None or self._error is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has asked for the text to end."""
        return self._cancelled

    def cancel(self) -> None:
        """Ends the text before the next step; its row is free then."""
        self._cancelled = True
        self._scheduler.wake()

    def result(self) -> list[int]:
        """All new tokens, once the text is over."""
        return [step.token for step in self]

    def __iter__(self) -> Iterator[Step]:
        given = 0
        while True:
            with self._changed:
                fresh, is_done = self._steps[given:], self.is_done
                if not fresh and not is_done and self._scheduler.is_running:
                    self._changed.wait()
                    continue
            yield from fresh
            given += len(fresh)
            if is_done:
                break
            if not fresh:
                self._scheduler.step()  # nobody else does it: the one who waits takes the step
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[Step]:
        if not self._scheduler.is_running:
            raise SystolicError("asyncio needs a scheduler that runs by itself: `with exe.scheduler(…) as …`")
        import asyncio  # and with it sockets and TLS, which other readers do without

        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def listener() -> None:
            with suppress(RuntimeError):  # the loop has been closed, and its reader with it
                loop.call_soon_threadsafe(changed.set)

        self._listeners.append(listener)
        given = 0
        try:
            while True:
                changed.clear()
                with self._changed:
                    fresh, is_done = self._steps[given:], self.is_done
                for step in fresh:
                    yield step
                given += len(fresh)
                if is_done:
                    break
                await changed.wait()
        finally:
            self._listeners.remove(listener)
        if self._error is not None:
            raise self._error

    # ---- what the scheduler does ----

    def push(self, step: Step) -> None:
        """Hands a step to every reader."""
        if self.first_token is None:
            self.first_token = time.perf_counter()
        self._tell(lambda: self._steps.append(step))
        if step.finish_reason is not None:
            self.finish(step.finish_reason)

    def finish(self, reason: str) -> None:
        """No further step will come."""

        def end() -> None:
            self.finish_reason = reason

        self._tell(end)

    def fail(self, error: BaseException) -> None:
        """No further step will come, and every reader learns why."""

        def end() -> None:
            self._error = error

        self._tell(end)

    def _tell(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()
        for listener in tuple(self._listeners):
            listener()

"""The seam to sampling: one token from the logits of one text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .decode_loop import raise_if_failed
from .generate import Generation, sampling_row
from .sampling.host import HostSampler

if TYPE_CHECKING:
    from .executable import Executable


class Chooser:
    """Chooses the tokens of one text, of which ``prompt`` were given, as ``exe.generate`` does alone."""

    def __init__(self, executable: Executable, prompt: int, generation: Generation) -> None:
        row = sampling_row(executable, prompt, generation)
        self._prompt = prompt
        self._sampler = HostSampler(row, executable.logit_count, executable.options.capacity)

    def choose(
        self, logits: np.ndarray, tokens: Sequence[int], banned: Collection[int] = (), attempt: int = 0
    ) -> int:
        """The token behind all of a text's ``tokens``, where the model gave ``logits`` [V].

        ``banned`` tokens are not chosen; another ``attempt`` has random numbers of its own. Raises
        ``SystolicError`` if the logits are not numbers.
        """
        token = self._sampler.choose(logits, tokens, banned, attempt)
        raise_if_failed(token, len(tokens) - self._prompt)
        return token

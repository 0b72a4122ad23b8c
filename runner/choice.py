"""The seam to sampling: one token from the logits of one text."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from .generate import Generation
from .sampling import sample


def choose(
    logits: np.ndarray, generation: Generation, step: int, banned: Collection[int] = (), attempt: int = 0
) -> int:
    """The token behind logits [V], as the ``step``-th new one of a text that is generated alone.

    ``banned`` tokens are not chosen; another ``attempt`` has random numbers of its own. Raises
    ``SystolicError`` if the logits are not numbers.
    """
    if banned:
        logits = logits.copy()
        logits[list(banned)] = -np.inf
    return sample(logits, generation.sampling, step, attempt)

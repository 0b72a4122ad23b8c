"""What generation_config.json forces and bans, as steps of the chain that chooses tokens."""

from __future__ import annotations

from ..models.model import Constraints
from .sampling.penalties import Banned, Forced
from .sampling.structure import Chain


def constraint_steps(constraints: Constraints, given: int, max_new_tokens: int) -> Chain:
    """The steps that keep a text to ``constraints``.

    ``given`` is how many tokens the text begins with: a first token is forced behind a single one only.
    """
    first = constraints.first if given == 1 else ()
    last = constraints.last if max_new_tokens > bool(first) else ()
    at = (0,) * len(first) + (max_new_tokens - 1,) * len(last)
    begins = 1 if first else 0
    steps = (
        Banned(constraints.banned),
        Banned(constraints.banned_at_start, begins, begins + 1),
        Forced(at, (*first, *last)),
    )
    return tuple(step for step in steps if step.tokens)

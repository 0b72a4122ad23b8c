"""How tokens are chosen, as a user says it: fields for the common steps, or a chain of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING

from ...ir.errors import SystolicError
from .structure import MATCH, Chain, Row

if TYPE_CHECKING:
    from .step import Step

COLDEST = 1e-30  # a lower temperature would divide by what float32 cannot hold; it is greedy
LIKELIEST = 20  # alternatives that can be listed


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Every default leaves the distribution as the model made it.

    ``temperature`` 0 takes the best token. The other fields are steps of the chain, which is in the order
    of ``sampling.chain.ORDER``; the steps are described there by class. ``chain`` are steps in an order of
    one's own, which come instead of the fields; a token is then drawn unless ``temperature`` is 0.
    ``logprobs``: how many likeliest tokens are listed at each step (0: only the chosen one's
    log-probability, None: nothing). Rows of one batch draw different numbers from the same ``seed``.
    Raises ``SystolicError`` that names the field.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    temperature_range: tuple[float, float] | None = None  # of a dynamic temperature
    temperature_exponent: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breakers: Sequence[int] = ()
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned_tokens: Sequence[int] = ()
    forced_tokens: Mapping[int, int] = field(default_factory=dict)
    bad_words: Sequence[Sequence[int]] = ()
    min_new_tokens: int = 0
    logprobs: int | None = None
    chain: Sequence[Step] | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _NUMBERS.items():
            value = getattr(self, name)
            if not _is_real(value) or not low <= value <= high or math.isinf(value):
                bounds = f"of at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
                raise SystolicError(f"{name} must be a number {bounds}, not {value!r}")
        for name, (low, high) in _INTEGERS.items():
            value = getattr(self, name)
            if not is_integer(value) or not low <= value <= high:
                bounds = f"of at least {low}" if high == _LARGE else f"from {low} to {_shown(high)}"
                raise SystolicError(f"{name} must be an integer {bounds}, not {value!r}")
        self._check_lists()
        if self.logprobs is not None and not (is_integer(self.logprobs) and 0 <= self.logprobs <= LIKELIEST):
            raise SystolicError(f"logprobs must be an integer from 0 to {LIKELIEST}, not {self.logprobs!r}")

    def _check_lists(self) -> None:
        tokens = [*self.logit_bias, *self.banned_tokens, *self.dry_breakers, *self.forced_tokens]
        tokens += [*self.forced_tokens.values(), *(token for word in self.bad_words for token in word)]
        for token in tokens:
            if not is_integer(token) or not 0 <= token <= _LARGE:
                raise SystolicError(f"lists of tokens must hold token ids, not {token!r}")
        if not all(0 < len(word) <= MATCH for word in self.bad_words):
            raise SystolicError(f"bad_words must be lists of 1 to {MATCH} token ids, not {self.bad_words!r}")
        if not all(map(_is_real, self.logit_bias.values())):
            raise SystolicError(f"logit_bias must map token ids to numbers, not {self.logit_bias!r}")
        if self.temperature_range is not None:
            low, high = self.temperature_range
            if not (_is_real(low) and _is_real(high) and COLDEST <= low <= high < math.inf):
                raise SystolicError(
                    f"temperature_range must be two rising numbers above 0, not {self.temperature_range!r}"
                )
        if self.chain:
            from .chain import ORDER

            for step in self.chain:
                if type(step) not in ORDER:
                    raise SystolicError(f"chain must hold steps such as TopK(40), not {step!r}")

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn, instead of the best one being taken."""
        if self.chain is not None:
            return not any(type(step).__name__ == "Greedy" for step in self.chain)
        return self.temperature >= COLDEST or self.temperature_range is not None

    def steps(self, eos_ids: Sequence[int] = ()) -> Chain:
        """The chain; ``eos_ids`` are what ``min_new_tokens`` bans at first."""
        if self.chain is not None:
            return tuple(self.chain)
        if self._is_plain:
            return ()
        listed = (*self._said_so_far(eos_ids), *(self._distribution() if self.draws else ()))
        return tuple(step for step in listed if step != type(step)(**step.fixed))

    @property
    def _is_plain(self) -> bool:
        """Whether no field asks for a step."""
        given = (each for each in fields(Sampling) if each.name not in ("seed", "logprobs", "chain"))
        return all(getattr(self, each.name) in (each.default, (), {}) for each in given)

    def _said_so_far(self, eos_ids: Sequence[int]) -> Chain:
        from . import penalties  # with the language that they are written in

        last = self.penalty_last
        dry = (self.dry_multiplier, self.dry_base, self.dry_allowed_length, last, tuple(self.dry_breakers))
        return (
            penalties.LogitBias(tuple(self.logit_bias), tuple(self.logit_bias.values())),
            *([penalties.Repetition(self.repetition_penalty, 0, last)] * (self.repetition_penalty != 1)),
            *([penalties.Presence(self.presence_penalty, last)] * (self.presence_penalty != 0)),
            *([penalties.Frequency(self.frequency_penalty, last)] * (self.frequency_penalty != 0)),
            *([penalties.Dry(*dry)] * (self.dry_multiplier != 0)),
            penalties.NoRepeatNgram(self.no_repeat_ngram_size),
            penalties.BadWords(tuple(map(tuple, self.bad_words))),
            penalties.Banned(tuple(self.banned_tokens)),
            *(
                [penalties.Banned(tuple(eos_ids), 0, self.min_new_tokens)]
                * bool(eos_ids and self.min_new_tokens)
            ),
            penalties.Forced(tuple(self.forced_tokens), tuple(self.forced_tokens.values())),
        )

    def _distribution(self) -> Chain:
        from . import filters

        heat: Step = filters.Temperature(self.temperature)
        if self.temperature_range is not None:
            heat = filters.DynamicTemperature(*self.temperature_range, self.temperature_exponent)
        return (
            heat,
            filters.TopK(self.top_k),
            filters.TopP(self.top_p),
            filters.MinP(self.min_p),
            filters.Typical(self.typical_p),
            filters.Epsilon(self.epsilon_cutoff),
            filters.Eta(self.eta_cutoff),
            filters.TopNSigma(self.top_n_sigma),
            *([filters.Xtc(self.xtc_probability, self.xtc_threshold)] * (self.xtc_probability > 0)),
            *([filters.Mirostat(self.mirostat_tau, self.mirostat_eta)] * (self.mirostat_tau > 0)),
        )

    def row(self, *, stream: int, prompt: int, eos_ids: Sequence[int] = ()) -> Row:
        """What one row is sampled with: its random stream, and how long its prompt is."""
        return Row(self.steps(eos_ids), self.draws, self.seed, stream, prompt)


_LARGE = 2**31 - 1
_SEEDS = 2**64 - 1
_NUMBERS = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "temperature_exponent": (0.0, math.inf),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "epsilon_cutoff": (0.0, 1.0),
    "eta_cutoff": (0.0, 1.0),
    "top_n_sigma": (0.0, math.inf),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "mirostat_tau": (0.0, math.inf),
    "mirostat_eta": (0.0, math.inf),
    "repetition_penalty": (1e-3, math.inf),
    "presence_penalty": (-1e9, 1e9),
    "frequency_penalty": (-1e9, 1e9),
    "dry_multiplier": (0.0, math.inf),
    "dry_base": (1.0, 16.0),
}
_INTEGERS = {
    "top_k": (0, _LARGE),
    "seed": (0, _SEEDS),
    "penalty_last": (0, _LARGE),
    "dry_allowed_length": (0, MATCH),
    "no_repeat_ngram_size": (0, MATCH),
    "min_new_tokens": (0, _LARGE),
}
INTEGER_FIELDS = frozenset(_INTEGERS)


def _shown(high: int) -> str:
    return "2**64 - 1" if high == _SEEDS else str(high)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    """Whether a value is an integer, also one of NumPy, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)

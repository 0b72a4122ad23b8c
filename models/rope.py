"""Rotary positions: pairs of a head's elements are turned by position × frequency.

Each scaling is a dataclass of its settings (the fields of ``rope_parameters`` or ``rope_scaling``)
with two methods: the frequencies, and the magnitude by which cosine and sine are multiplied. Two
scalings ask how long the text is (``length.text_length``): ``shortest_like`` says which texts turn alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..compiler.language import concatenate, cos, maximum, position, reshape, sin, split, stack, where
from ..compiler.stream import Stream
from ..ir.errors import SystolicError
from .length import text_length
from .positions import UNLIMITED
from .spec import Config, Size

# Per position: two streams f32[width / 2]; None where nothing is turned.
CosSin = tuple[Stream, Stream] | None


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Frequencies theta^(-2i/width), unscaled; the base of all scalings."""

    rope_type: str = "default"
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    max_position_embeddings: Size = 2048
    original_max_position_embeddings: Size | None = None
    finetuned: bool = False  # a note that some YaRN checkpoints carry

    @property
    def original(self) -> int:
        """How many positions the model was trained on before its context was stretched."""
        return self.original_max_position_embeddings or self.max_position_embeddings

    def width(self, head_size: int) -> int:
        """How many elements of a head are turned, the first ones."""
        return int(head_size * self.partial_rotary_factor)

    def base(self, width: int) -> np.ndarray:
        """The unscaled frequencies in float64, [width / 2], rounded up where the width is odd."""
        return self.rope_theta ** (-np.arange(0, width, 2) / width)

    def frequencies(self, width: int) -> np.ndarray | Stream:
        """Radians per position of each pair, [width / 2]: a stream where they depend on the text's length."""
        return self.base(width)

    def magnitude(self) -> float | Stream:
        """What cosine and sine are multiplied by."""
        return 1.0

    def shortest_like(self, length: int) -> int:
        """How long the shortest text is that turns like one of ``length`` positions."""
        return 1


@dataclass(frozen=True, kw_only=True)
class LinearRope(Rope):
    """All frequencies divided by ``factor``."""

    factor: float

    def frequencies(self, width: int) -> np.ndarray | Stream:
        return self.base(width) / self.factor


@dataclass(frozen=True, kw_only=True)
class DynamicRope(Rope):
    """A base that grows with the length of the text once it exceeds ``max_position_embeddings``.

    All positions turn by the frequencies of the whole text, so a longer text is computed anew.
    """

    factor: float

    def __post_init__(self) -> None:
        if self.original != self.max_position_embeddings:
            raise SystolicError(
                "dynamic scaling starts at max_position_embeddings; another "
                "original_max_position_embeddings is not supported"
            )

    def frequencies(self, width: int) -> np.ndarray | Stream:
        limit = float(self.max_position_embeddings)
        length = maximum(text_length().cast("f32"), limit)
        growth = length * (self.factor / limit) - (self.factor - 1.0)
        # theta becomes theta * growth^(width / (width - 2)); its power -2i/width is taken apart.
        exponents = -np.arange(0, width, 2) / max(width - 2, 1)
        return growth ** exponents.astype(np.float32) * self.base(width).astype(np.float32)

    def shortest_like(self, length: int) -> int:
        return length if length > self.max_position_embeddings else 1


@dataclass(frozen=True, kw_only=True)
class NtkRope(Rope):
    """A base that is stretched once and for all, by ``alpha``^(width / (width - 2))."""

    # Settings of other scalings, which files carry along.
    harmless: ClassVar[frozenset[str]] = frozenset(
        ["beta_fast", "beta_slow", "factor", "mscale", "mscale_all_dim"]
    )

    alpha: float

    def base(self, width: int) -> np.ndarray:
        exponents = -np.arange(0, width, 2) / max(width - 2, 1)
        return super().base(width) * self.alpha**exponents


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Long wavelengths divided by ``factor``, short ones kept, a blend between the two."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise SystolicError("high_freq_factor must be greater than low_freq_factor")

    def frequencies(self, width: int) -> np.ndarray | Stream:
        base = self.base(width)
        turns = self.original * base / (2 * math.pi)  # within the original context
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return kept * base + (1 - kept) * base / self.factor


@dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """YaRN: a linear ramp over the pairs from kept to divided by ``factor``, and a magnitude."""

    factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @property
    def stretch(self) -> float:
        return self.factor or self.max_position_embeddings / self.original

    def frequencies(self, width: int) -> np.ndarray | Stream:
        first = self._pair_with_turns(self.beta_fast or 32.0, width)
        last = self._pair_with_turns(self.beta_slow or 1.0, width)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        base = self.base(width)
        ramp = (np.arange(len(base)) - first) / (last - first if last != first else 0.001)
        divided = np.clip(ramp, 0.0, 1.0)
        return base * (1 - divided) + base / self.stretch * divided

    def _pair_with_turns(self, turns: float, width: int) -> float:
        """Which pair turns that often within the original context."""
        return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.rope_theta))

    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_magnitude(self.stretch, self.mscale) / yarn_magnitude(
                self.stretch, self.mscale_all_dim
            )
        return yarn_magnitude(self.stretch, 1.0)


def yarn_magnitude(factor: float, mscale: float) -> float:
    """0.1 · mscale · ln(factor) + 1; no change where nothing is stretched."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True, kw_only=True)
class LongRope(Rope):
    """One divisor per pair: ``short_factor`` up to the original context, ``long_factor`` beyond it.

    A text that has grown beyond it turns differently from its first position on: it is computed anew.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    factor: float | None = None
    attention_factor: float | None = None

    def frequencies(self, width: int) -> np.ndarray | Stream:
        for name in ("short_factor", "long_factor"):
            if len(getattr(self, name)) != len(self.base(width)):
                raise SystolicError(f"{name} must hold {len(self.base(width))} numbers, one for each pair")
        short, long = self.base(width) / self.short_factor, self.base(width) / self.long_factor
        is_short = text_length() <= self.original
        return where(is_short, short.astype(np.float32), long.astype(np.float32))

    def shortest_like(self, length: int) -> int:
        return self.original + 1 if length > self.original else 1

    def magnitude(self) -> float | Stream:
        if self.attention_factor is not None:
            return self.attention_factor
        stretch = self.factor or self.max_position_embeddings / self.original
        return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(self.original))


@dataclass(frozen=True, kw_only=True)
class ProportionalRope(Rope):
    """The first pairs of the whole head turn, ``partial_rotary_factor`` of them; the others stand still."""

    factor: float = 1.0

    def width(self, head_size: int) -> int:
        return head_size

    def frequencies(self, width: int) -> np.ndarray | Stream:
        turning = np.arange(width // 2) < int(self.partial_rotary_factor * width // 2)
        return np.where(turning, self.base(width) / self.factor, 0.0)


SCALINGS: dict[str, type[Rope]] = {
    "default": Rope,
    "linear": LinearRope,
    "dynamic": DynamicRope,
    "llama3": Llama3Rope,
    "yarn": YarnRope,
    "longrope": LongRope,
    "proportional": ProportionalRope,
}


@dataclass(frozen=True, kw_only=True)
class RopeFields:
    """The fields of a config.json that describe rotary positions, in the layouts of 5.x and before."""

    default_theta: ClassVar[float] = 10000.0
    turns_whole_heads: ClassVar[bool] = False  # whatever partial_rotary_factor asks for

    max_position_embeddings: Size = 2048
    rope_parameters: Config | None = None
    rope_theta: float | None = None
    rope_scaling: Config | None = None
    partial_rotary_factor: float | None = None
    original_max_position_embeddings: Size | None = None

    @property
    def context_length(self) -> int:
        is_open = any(isinstance(rope, DynamicRope) for rope in self.ropes())
        return UNLIMITED if is_open else self.max_position_embeddings

    def ropes(self) -> tuple[Rope, ...]:
        """The scalings that the model uses."""
        return (self.rope(),)

    def shortest_like(self, length: int) -> int:
        """How long the shortest text is that is computed like one of ``length`` positions."""
        return max((rope.shortest_like(length) for rope in self.ropes()), default=1)

    def rope(self) -> Rope:
        """The scaling that the config asks for; ``SystolicError`` for one that is unknown."""
        settings = self.rope_parameters or Config("rope_parameters", {})
        if self.rope_scaling is not None and self.rope_scaling.values:
            settings = self.rope_scaling
        return self.scaling(settings, self.rope_theta or self.default_theta)

    def scaling(self, settings: Config, theta: float) -> Rope:
        """The scaling of one object of settings, completed by the fields beside it."""
        outside = {
            "rope_theta": theta,
            "partial_rotary_factor": self.partial_rotary_factor,
        }
        limits = {  # count where a file has them in both places
            "max_position_embeddings": self.max_position_embeddings,
            "original_max_position_embeddings": self.original_max_position_embeddings,
        }
        inside = dict(settings.values)
        old_name = inside.pop("type", "default")
        values = {"rope_type": old_name, **_present(outside), **_present(inside), **_present(limits)}
        merged = Config(settings.source, values)
        kind = merged.text("rope_type")
        in_part = kind != "proportional" and merged.values.get("partial_rotary_factor", 1.0) != 1.0
        if self.turns_whole_heads and in_part:
            raise SystolicError(
                f"{settings.source}: partial_rotary_factor must be 1: this family turns whole heads"
            )
        scalings = self.scalings(merged)
        if kind not in scalings:
            raise SystolicError(
                f"{settings.source}: rope_type {kind!r} is unknown; known: {', '.join(scalings)}"
            )
        return merged.read(scalings[kind])

    def scalings(self, settings: Config) -> dict[str, type[Rope]]:
        """What each ``rope_type`` means in this family."""
        return SCALINGS


@dataclass(frozen=True, kw_only=True)
class RopeByLayerType(RopeFields):
    """Layers that slide and layers that see all of the past have settings of their own.

    Newer files nest them in ``rope_parameters`` by the type of the layer; older ones have a scaling
    for the layers that see all, and perhaps another theta for those that slide.
    """

    def rope_of(self, layer_type: str) -> Rope:
        """The scaling of the layers of that type; ``SystolicError`` for settings that are not nested."""
        if self.rope_parameters is None:
            is_full = layer_type == "full_attention"
            settings = (self.rope_scaling if is_full else None) or Config("rope_parameters", {})
            return self.scaling(settings, self.theta_of(layer_type))
        flat = set(self.rope_parameters.values) - {"full_attention", "sliding_attention"}
        if flat:
            raise SystolicError(
                f"{self.rope_parameters.source}: {min(flat)} must be inside full_attention or "
                "sliding_attention"
            )
        nested = self.rope_parameters.values.get(layer_type) is not None
        settings = self.rope_parameters.section(layer_type) if nested else Config(layer_type, {})
        return self.scaling(settings, self.theta_of(layer_type))

    def theta_of(self, layer_type: str) -> float:
        """The theta of a layer type whose settings have none."""
        raise NotImplementedError


def _present(values: dict) -> dict:
    return {name: value for name, value in values.items() if value is not None}


def rotation(rope: Rope, head_size: int) -> CosSin:
    """Cosine and sine of this position's angles, f32[width / 2] each; computed once for all layers."""
    width = rope.width(head_size)
    if width < 2 or 2 * len(rope.base(width)) > head_size:
        raise SystolicError(f"rotary positions need pairs of elements, not {width} of {head_size}")
    frequencies = rope.frequencies(width)
    if isinstance(frequencies, np.ndarray):
        frequencies = frequencies.astype(np.float32)  # type: ignore[assignment]
    angles = position().cast("f32") * frequencies
    magnitude = rope.magnitude()
    if isinstance(magnitude, float) and magnitude == 1.0:
        return cos(angles).named("cos"), sin(angles).named("sin")
    return (cos(angles) * magnitude).named("cos"), (sin(angles) * magnitude).named("sin")


def rotate(x: Stream, cos_sin: CosSin, *, interleaved: bool = False) -> Stream:
    """``x`` [..., D] with its first 2 * len(cos) elements turned in pairs; the rest passes through.

    Pairs are (i, i + width / 2), or (2i, 2i + 1) when ``interleaved``.
    """
    if cos_sin is None:
        return x
    cosine, sine = cos_sin
    (half,), size = cosine.shape, x.shape[-1]
    turned, *rest = split(x, [2 * half, size - 2 * half]) if size != 2 * half else [x]  # type: ignore
    if interleaved:
        pairs = reshape(turned, *turned.shape[:-1], half, 2)
        first, second = pairs[..., 0], pairs[..., 1]
    else:
        first, second = split(turned, [half, half])  # type: ignore[list-item]
    parts = [first * cosine - second * sine, second * cosine + first * sine]
    joined = reshape(stack(parts, axis=-1), *turned.shape) if interleaved else concatenate(parts, axis=-1)
    return concatenate([joined, *rest], axis=-1) if rest else joined

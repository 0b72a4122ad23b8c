"""Phi-3.5-MoE: norms with biases, and two experts, each with its share among those about as good as it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...compiler.language import absolute, arange, maximum, parameter, softmax, stack, take, top_k, where
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import layer_norm, linear
from ..decoder import RotaryDecoder
from ..experts import ExpertNames, Routing, routed_mlp, router_logits
from ..family import LLAMA_NAMING, Family
from ..length import text_length
from ..rope import LongRope, Rope
from ..spec import Config, Size


@dataclass(frozen=True, kw_only=True)
class PhimoeRope(LongRope):
    """Two magnitudes, one for long texts. The divisors are always the short ones: so does transformers."""

    short_mscale: float
    long_mscale: float

    def frequencies(self, width: int) -> np.ndarray | Stream:
        if len(self.short_factor) != width // 2:
            raise SystolicError(f"short_factor must hold {width // 2} numbers, one for each pair")
        return self.base(width) / self.short_factor

    def magnitude(self) -> float | Stream:
        return where(text_length() <= self.original, self.short_mscale, self.long_mscale).cast("f32")


@dataclass(frozen=True, kw_only=True)
class Phimoe(RotaryDecoder):
    default_theta: ClassVar[float] = 1e6
    turns_whole_heads: ClassVar[bool] = True
    # Noise of training, and a number of experts that is always 2.
    harmless: ClassVar[frozenset[str]] = frozenset({"input_jitter_noise", "num_experts_per_tok"})

    intermediate_size: Size = 6400
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None
    attention_bias: bool = False
    lm_head_bias: bool = False
    num_local_experts: Size = 16
    router_jitter_noise: float = 0.01

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def window(self, i: int) -> int | None:
        return self.sliding_window

    def scalings(self, settings: Config) -> dict[str, type[Rope]]:
        return {"default": Rope, "longrope": PhimoeRope}

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.rms_norm_eps)

    def head(self, x: Stream) -> Stream:
        table = "model.embed_tokens" if self.tie_word_embeddings else "lm_head"
        logits = linear(x, table, self.vocab_size)
        return logits + parameter("lm_head.bias", (self.vocab_size,)) if self.lm_head_bias else logits

    def mlp(self, x: Stream, name: str) -> Stream:
        name = name.replace(".mlp", ".block_sparse_moe")
        logits = router_logits(x, f"{name}.gate", self.num_local_experts)
        return routed_mlp(
            x,
            f"{name}.experts",
            sparse_mixer(logits, self.router_jitter_noise),
            experts=self.num_local_experts,
            width=self.intermediate_size,
            act=self.hidden_act,
            names=ExpertNames("w1", "w3", "w2"),
        )


def sparse_mixer(logits: Stream, tolerance: float) -> Routing:
    """The best two of ``logits`` [E], as SparseMixer-v2 weighs them (arXiv 2409.12136, at inference).

    The share of each is its softmax among the experts that are not far below it: at most 2 ``tolerance``
    times its logit, or times their own if that is larger. The best one is not among those of the second.
    """
    best, chosen = top_k(logits, 2)
    candidates, shares = logits, []
    for i in range(2):
        is_far = (best[i] - logits) / maximum(absolute(logits), best[i]) > 2.0 * tolerance
        shares.append(take(softmax(where(is_far, -math.inf, candidates)), chosen[i]))
        is_taken = arange(logits.shape[0]) == chosen[i]  # type: ignore[arg-type]
        candidates = where(is_taken, -math.inf, candidates)
    return Routing(chosen, stack(shares))


FAMILIES = {"phimoe": Family(Phimoe, LLAMA_NAMING)}

"""Mixtral: a Mistral with a mixture of experts in place of each MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..decoder import RotaryDecoder
from ..experts import ExpertNames, routed_mlp, router_logits, softmax_routing
from ..family import LLAMA_NAMING, Family
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Mixtral(RotaryDecoder):
    harmless: ClassVar[frozenset[str]] = frozenset({"router_jitter_noise"})  # only in training
    default_theta: ClassVar[float] = 1e6

    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2

    def window(self, i: int) -> int | None:
        return self.sliding_window

    def mlp(self, x: Stream, name: str) -> Stream:
        name = name.replace(".mlp", ".block_sparse_moe")
        logits = router_logits(x, f"{name}.gate", self.num_local_experts)
        routing = softmax_routing(logits, self.num_experts_per_tok, normalise=True)
        return routed_mlp(
            x,
            f"{name}.experts",
            routing,
            experts=self.num_local_experts,
            width=self.intermediate_size,
            act=self.hidden_act,
            names=ExpertNames("w1", "w3", "w2"),
        )


FAMILIES = {"mixtral": Family(Mixtral, LLAMA_NAMING)}

"""OLMoE: queries and keys normed before they are heads, all three clipped; experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import maximum, minimum
from ...compiler.stream import Stream
from ..experts import routed_mlp, router_logits, softmax_routing
from ..family import LLAMA_NAMING, Family
from ..spec import Size
from .olmo import OlmoFields


@dataclass(frozen=True, kw_only=True)
class Olmoe(OlmoFields):
    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    intermediate_size: Size = 2048
    max_position_embeddings: Size = 4096
    rms_norm_eps: float = 1e-5
    clip_qkv: float | None = None
    num_experts: Size = 64
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = False

    def settled(self, x: Stream, name: str, part: str) -> Stream:
        x = x if part == "v" else self.norm(x, f"{name}.{part}_norm")
        bound = self.clip_qkv
        return x if bound is None else minimum(maximum(x, -bound), bound)

    def mlp(self, x: Stream, name: str) -> Stream:
        logits = router_logits(x, f"{name}.gate", self.num_experts)
        return routed_mlp(
            x,
            f"{name}.experts",
            softmax_routing(logits, self.num_experts_per_tok, normalise=self.norm_topk_prob),
            experts=self.num_experts,
            width=self.intermediate_size,
            act=self.hidden_act,
        )


FAMILIES = {"olmoe": Family(Olmoe, LLAMA_NAMING)}

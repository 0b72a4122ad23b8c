"""GLM-4.5: half of each head turned, experts chosen as in DeepSeek-V3 behind some layers without any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.language import parameter
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import gated_mlp
from ..decoder import RotaryDecoder
from ..experts import corrected_sigmoid_routing, routed_mlp, router_logits
from ..family import LLAMA_NAMING, Family
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Glm4Moe(RotaryDecoder):
    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}
    # Further layers that guess tokens ahead; no logit depends on them.
    harmless: ClassVar[frozenset[str]] = frozenset({"num_nextn_predict_layers", "num_mtp_layers"})

    intermediate_size: Size = 10944
    max_position_embeddings: Size = 131072
    num_key_value_heads: Size | None = 8
    partial_rotary_factor: float | None = 0.5
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    use_qk_norm: bool = False
    n_routed_experts: Size = 128
    n_shared_experts: int = 1
    num_experts_per_tok: Size = 8
    moe_intermediate_size: Size = 1408
    first_k_dense_replace: int = 1
    n_group: Size = 1
    topk_group: Size = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_routed_experts % self.n_group:
            raise SystolicError("n_routed_experts is not a multiple of n_group")

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        q, k, v = super().heads(x, name)
        if not self.use_qk_norm:
            return q, k, v
        return self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm"), v

    def layer_mlp(self, x: Stream, name: str, i: int) -> Stream:
        if i < self.first_k_dense_replace:
            return self.mlp(x, name)
        experts, width = self.n_routed_experts, self.moe_intermediate_size
        routing = corrected_sigmoid_routing(
            router_logits(x, f"{name}.gate", experts),
            parameter(f"{name}.gate.e_score_correction_bias", (experts,)),
            self.num_experts_per_tok,
            groups=self.n_group,
            kept=self.topk_group,
            normalise=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
        )
        routed = routed_mlp(x, f"{name}.experts", routing, experts=experts, width=width, act=self.hidden_act)
        if self.n_shared_experts == 0:
            return routed
        shared = gated_mlp(x, f"{name}.shared_experts", width * self.n_shared_experts, self.hidden_act)
        return routed + shared


# The layers that guess ahead are numbered behind the last one of the two published sizes.
NAMING = replace(LLAMA_NAMING, unused=(r"model\.layers\.(46|92)\..*",))
FAMILIES = {"glm4_moe": Family(Glm4Moe, NAMING)}

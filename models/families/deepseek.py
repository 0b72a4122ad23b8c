"""DeepSeek V2 and V3: keys and values of all heads are projections of one small latent, and experts.

Beside the latent, one rotated key is shared by all heads (DeepSeek-V2, section 2.1). Here each head's key is
written out; that only the latent and the shared key need to be kept is found by ``passes.reassociate``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.language import broadcast_to, concatenate, parameter, softmax, split
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import attention, gated_mlp, linear, rms_norm
from ..decoder import RotaryDecoder
from ..experts import (
    Routing,
    choose,
    corrected_sigmoid_routing,
    keep_best_groups,
    routed_mlp,
    router_logits,
    scaled,
)
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin, YarnRope, rotate, yarn_magnitude
from ..spec import Size

_LATENT_EPS = 1e-6  # of the norms around the latents, whatever rms_norm_eps says


@dataclass(frozen=True, kw_only=True)
class LatentDecoder(RotaryDecoder):
    """Multi-head latent attention; the first layers have an MLP, the others experts."""

    kv_lora_rank: Size = 512
    q_lora_rank: Size | None = 1536
    qk_nope_head_dim: Size = 128
    qk_rope_head_dim: Size = 64
    v_head_dim: Size = 128
    qk_head_dim: Size | None = None
    attention_bias: bool = False
    moe_intermediate_size: Size
    n_routed_experts: Size
    n_shared_experts: Size
    num_experts_per_tok: Size
    n_group: Size | None = None
    topk_group: Size | None = None
    first_k_dense_replace: int = 0
    moe_layer_freq: Size = 1
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = False
    num_nextn_predict_layers: int = 0  # further heads that guess ahead; no logit depends on them

    def __post_init__(self) -> None:
        if self.key_heads != self.num_attention_heads:
            raise SystolicError(
                "num_key_value_heads must equal num_attention_heads: all keys come from one latent"
            )
        if self.qk_head_dim not in (None, self.query_size):
            raise SystolicError("qk_head_dim is not qk_nope_head_dim + qk_rope_head_dim")
        if self.n_group and self.n_routed_experts % self.n_group:
            raise SystolicError("n_routed_experts is not a multiple of n_group")
        if self.moe_layer_freq != 1:
            raise SystolicError("moe_layer_freq must be 1: every layer behind the dense ones has experts")

    @property
    def query_size(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def head_size(self) -> int:
        """What is rotated of a head."""
        return self.qk_rope_head_dim

    @property
    def score_scale(self) -> float:
        """Under YaRN the scores are scaled beside what its cosine and sine are multiplied by."""
        scale, rope = self.query_size**-0.5, self.rope()
        if isinstance(rope, YarnRope) and rope.mscale_all_dim:
            scale *= yarn_magnitude(rope.stretch, rope.mscale_all_dim) ** 2
        return float(scale)

    def is_interleaved(self) -> bool:
        return True

    def attend(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        name = f"model.layers.{i}.self_attn"
        heads, plain, turned = self.num_attention_heads, self.qk_nope_head_dim, self.qk_rope_head_dim
        q_plain, q_turned = split(self.queries(x, name), [plain, turned])
        latent = linear(x, f"{name}.kv_a_proj_with_mqa", self.kv_lora_rank + turned, bias=self.attention_bias)
        latent, shared = split(latent, [self.kv_lora_rank, turned])
        latent = rms_norm(latent, f"{name}.kv_a_layernorm", _LATENT_EPS).named("latent")
        kv = linear(latent, f"{name}.kv_b_proj", heads * (plain + self.v_head_dim))
        k_plain, v = split(kv.reshape(heads, plain + self.v_head_dim), [plain, self.v_head_dim])
        shared = rotate(shared, cos_sin, interleaved=self.is_interleaved()).named("shared_key")
        q = concatenate([q_plain, rotate(q_turned, cos_sin, interleaved=self.is_interleaved())], axis=-1)
        k = concatenate([k_plain, broadcast_to(shared, (heads, turned))], axis=-1)
        mixed = attention(q.reshape(heads, 1, plain + turned), k, v, scale=self.score_scale)
        mixed = mixed.reshape(heads * self.v_head_dim)
        return linear(mixed, f"{name}.o_proj", self.hidden_size, bias=self.attention_bias)

    def queries(self, x: Stream, name: str) -> Stream:
        size = self.num_attention_heads * self.query_size
        if self.q_lora_rank is None:
            q = linear(x, f"{name}.q_proj", size)
        else:
            latent = linear(x, f"{name}.q_a_proj", self.q_lora_rank, bias=self.attention_bias)
            q = linear(rms_norm(latent, f"{name}.q_a_layernorm", _LATENT_EPS), f"{name}.q_b_proj", size)
        return q.reshape(self.num_attention_heads, self.query_size)

    def layer_mlp(self, x: Stream, name: str, i: int) -> Stream:
        if i < self.first_k_dense_replace:
            return self.dense(x, name, self.intermediate_size)
        experts, width = self.n_routed_experts, self.moe_intermediate_size
        routing = self.route(router_logits(x, f"{name}.gate", experts), name)
        routed = routed_mlp(x, f"{name}.experts", routing, experts=experts, width=width, act=self.hidden_act)
        return routed + self.dense(x, f"{name}.shared_experts", width * self.n_shared_experts)

    def dense(self, x: Stream, name: str, width: int) -> Stream:
        return gated_mlp(x, name, width, self.hidden_act)

    def route(self, logits: Stream, name: str) -> Routing:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DeepseekV2(LatentDecoder):
    vocab_size: Size = 102400
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    moe_intermediate_size: Size = 1407
    n_routed_experts: Size = 64
    n_shared_experts: Size = 2
    topk_method: str = "greedy"
    scoring_func: str = "softmax"
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.topk_method not in ("greedy", "group_limited_greedy"):
            raise SystolicError(
                f"topk_method {self.topk_method!r} is neither greedy nor group_limited_greedy"
            )
        if self.topk_method != "greedy" and not (self.n_group and self.topk_group):
            raise SystolicError("group_limited_greedy needs n_group and topk_group")
        if self.scoring_func != "softmax":
            raise SystolicError(f"scoring_func must be softmax, not {self.scoring_func!r}")

    def dense(self, x: Stream, name: str, width: int) -> Stream:
        return gated_mlp(x, name, width, self.hidden_act, bias=self.mlp_bias)

    def route(self, logits: Stream, name: str) -> Routing:
        """The library never normalises these shares, whatever norm_topk_prob says."""
        scores = softmax(logits)
        if self.topk_method == "group_limited_greedy":
            groups, kept = self.n_group or 1, self.topk_group or 1
            scores = keep_best_groups(scores, groups, kept, best=1, others=0.0)
        return scaled(choose(scores, self.num_experts_per_tok), self.routed_scaling_factor)


@dataclass(frozen=True, kw_only=True)
class DeepseekV3(LatentDecoder):
    vocab_size: Size = 129280
    hidden_size: Size = 7168
    intermediate_size: Size = 18432
    num_hidden_layers: Size = 61
    num_attention_heads: Size = 128
    moe_intermediate_size: Size = 2048
    n_routed_experts: Size = 256
    n_shared_experts: Size = 1
    num_experts_per_tok: Size = 8
    n_group: Size | None = 8
    topk_group: Size | None = 4
    first_k_dense_replace: int = 3
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    max_position_embeddings: Size = 4096
    rope_interleave: bool = True
    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.topk_method, self.scoring_func) != ("noaux_tc", "sigmoid"):
            raise SystolicError("topk_method must be noaux_tc and scoring_func sigmoid")

    def is_interleaved(self) -> bool:
        return self.rope_interleave

    def route(self, logits: Stream, name: str) -> Routing:
        correction = parameter(f"{name}.gate.e_score_correction_bias", (self.n_routed_experts,))
        return corrected_sigmoid_routing(
            logits,
            correction,
            self.num_experts_per_tok,
            groups=self.n_group or 1,
            kept=self.topk_group or 1,
            normalise=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
        )


FAMILIES = {
    "deepseek_v2": Family(DeepseekV2, LLAMA_NAMING),
    "deepseek_v3": Family(DeepseekV3, LLAMA_NAMING),
}

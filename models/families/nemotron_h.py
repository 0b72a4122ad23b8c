"""Nemotron H: each layer is one branch, a state space, attention without positions, an MLP or experts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import parameter
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, attention, embedding, linear, mlp, rms_norm
from ..experts import corrected_sigmoid_routing, mix_experts, routed_linear, router_logits
from ..family import Family
from ..spec import Size
from ..state_space import HeadStates
from ..weights import Naming

# What a letter of hybrid_override_pattern stands for.
LETTERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
OLDER_NAMES = {"mamba": "linear_attention", "attention": "full_attention"}


@dataclass(frozen=True, kw_only=True)
class NemotronH:
    # How training began, how the library computes and rounds, further heads that it leaves out, the number
    # of layers, which their list gives, and flags that no layer reads.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "time_step_max", "time_step_floor", "time_step_limit", "mamba_dt_max", "mamba_dt_limit",
        "mamba_dt_init_floor", "rescale_prenorm_residual", "residual_in_fp32", "chunk_size",
        "mamba_chunk_size", "use_mamba_kernels", "num_logits_to_keep",
        "num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern",
        "num_hidden_layers", "n_shared_experts", "moe_shared_expert_overlap", "attention_bias",
        "mamba_proj_bias", "attention_head_dim", "tie_word_embeddings", "expand", "mamba_expand",
        "rms_norm_eps", "norm_eps", "rope_theta", "partial_rotary_factor", "sliding_window",
    })  # fmt: skip
    aliases: ClassVar[dict[str, str]] = {
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_dt_min": "time_step_min",
        "mamba_conv_bias": "use_conv_bias",
        "layer_types": "layers_block_type",
    }

    vocab_size: Size = 131072
    hidden_size: Size = 4096
    layers_block_type: tuple[str, ...] | None = None
    hybrid_override_pattern: str | None = None
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    head_dim: Size = 128
    max_position_embeddings: Size = 4096
    intermediate_size: Size = 21504
    mlp_hidden_act: str = "relu2"
    mlp_bias: bool = False
    ssm_state_size: Size = 128
    mamba_num_heads: Size = 128
    mamba_head_dim: Size = 64
    mamba_hidden_act: str = "silu"
    n_groups: Size = 8
    conv_kernel: Size = 4
    time_step_min: float = 0.001  # the library bounds time steps by this, and not by time_step_limit
    use_conv_bias: bool = True
    use_bias: bool = False
    n_routed_experts: Size = 8
    moe_intermediate_size: Size = 7688
    moe_shared_expert_intermediate_size: Size = 7688
    moe_latent_size: Size | None = None
    num_experts_per_tok: Size = 2
    routed_scaling_factor: float = 1.0
    n_group: Size = 1
    topk_group: Size = 1
    norm_topk_prob: bool = True
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.key_heads:
            raise SystolicError("num_attention_heads is not a multiple of num_key_value_heads")
        unknown = [kind for kind in self.kinds if kind not in LETTERS.values()]
        if unknown:
            raise SystolicError(f"a layer is one of {', '.join(LETTERS.values())}, not {unknown[0]!r}")

    @property
    def context_length(self) -> int:
        return self.max_position_embeddings

    @property
    def key_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def kinds(self) -> list[str]:
        """What each layer is."""
        if self.layers_block_type is not None:
            return [OLDER_NAMES.get(kind, kind) for kind in self.layers_block_type]
        if self.hybrid_override_pattern is not None:
            return [LETTERS.get(letter, letter) for letter in self.hybrid_override_pattern]
        return ["linear_attention", "moe", "full_attention", "mlp"]

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        eps = self.layer_norm_epsilon
        with scope("embed"):
            x = embedding(token, "backbone.embeddings", self.vocab_size, self.hidden_size)
        branches = {
            "linear_attention": self.mixer().mix,
            "full_attention": self.attend,
            "mlp": self.mlp,
            "moe": self.experts,
        }
        for i, kind in enumerate(self.kinds):
            name = f"backbone.layers.{i}"
            with scope(f"layers.{i}"):
                branch = branches[kind](rms_norm(x, f"{name}.norm", eps), f"{name}.mixer")
                x = (x + branch).named("x")
        with scope("head"):
            x = rms_norm(x, "backbone.norm_f", eps)
            return {"logits": linear(x, "lm_head", self.vocab_size).named("logits")}

    def mixer(self) -> HeadStates:
        return HeadStates(
            hidden_size=self.hidden_size,
            heads=self.mamba_num_heads,
            head_size=self.mamba_head_dim,
            groups=self.n_groups,
            state_size=self.ssm_state_size,
            kernel=self.conv_kernel,
            eps=self.layer_norm_epsilon,
            activation=self.mamba_hidden_act,
            bias=self.use_bias,
            output_bias=self.use_bias,
            convolution_bias=self.use_conv_bias,
            time_step_limit=(self.time_step_min, math.inf),
        )

    def attend(self, x: Stream, name: str) -> Stream:
        heads, keys, size = self.num_attention_heads, self.key_heads, self.head_dim
        q = linear(x, f"{name}.q_proj", heads * size).reshape(keys, heads // keys, size)
        k = linear(x, f"{name}.k_proj", keys * size).reshape(keys, size)
        v = linear(x, f"{name}.v_proj", keys * size).reshape(keys, size)
        mixed = attention(q, k, v, scale=size**-0.5).reshape(heads * size)
        return linear(mixed, f"{name}.o_proj", self.hidden_size)

    def mlp(self, x: Stream, name: str) -> Stream:
        return self.mlp_of(x, name, self.intermediate_size)

    def mlp_of(self, x: Stream, name: str, width: int) -> Stream:
        up, down = f"{name}.up_proj", f"{name}.down_proj"
        return mlp(x, up, down, width, self.mlp_hidden_act, bias=self.mlp_bias)

    def experts(self, x: Stream, name: str) -> Stream:
        """Experts without gates, in a smaller space where ``moe_latent_size`` is given, and one for all."""
        experts, width, size = self.n_routed_experts, self.moe_intermediate_size, self.hidden_size
        routing = corrected_sigmoid_routing(
            router_logits(x, f"{name}.gate", experts),
            parameter(f"{name}.gate.e_score_correction_bias", (experts,)),
            self.num_experts_per_tok,
            groups=self.n_group,
            kept=self.topk_group,
            normalise=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
        )
        shared = self.mlp_of(x, f"{name}.shared_experts", self.moe_shared_expert_intermediate_size)
        if self.moe_latent_size is not None:
            size = self.moe_latent_size
            x = linear(x, f"{name}.fc1_latent_proj", size, bias=self.mlp_bias)
        up = parameter(f"{name}.experts.*.up_proj.weight", (experts, width, size))
        down = parameter(f"{name}.experts.*.down_proj.weight", (experts, size, width))
        hidden = activation(self.mlp_hidden_act)(routed_linear(x, up, routing.chosen))
        mixed = mix_experts(routed_linear(hidden, down, routing.chosen), routing.shares)
        if self.moe_latent_size is not None:
            mixed = linear(mixed, f"{name}.fc2_latent_proj", self.hidden_size, bias=self.mlp_bias)
        return mixed + shared


FAMILIES = {"nemotron_h": Family(NemotronH, Naming("backbone.", unused=(r"mtp\..*",)))}

"""Bamba, where some layers attend and the others are state spaces, and Falcon H1, where each is both."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, gated_mlp, linear
from ..decoder import RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin, Rope
from ..spec import Size
from ..state_space import HeadStates
from .mamba import without_auto


@dataclass(frozen=True, kw_only=True)
class StateSpaceDecoder(RotaryDecoder):
    """The fields that both have, and a layer: what mixes tokens, then an MLP."""

    final_norm: ClassVar[str] = "model.final_layernorm"
    # How the library computes, how it was trained, and how many logits it returns.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "mamba_chunk_size", "z_loss_coefficient", "num_logits_to_keep", "layers_block_type", "layer_types",
        "use_mamba_kernels", "attn_rotary_emb", "mamba_use_mlp", "mlp_expansion_factor", "time_step_rank",
        "time_step_min", "time_step_max", "time_step_floor",
    })  # fmt: skip

    vocab_size: Size = 128000
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 262144
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    mamba_n_heads: Size = 128
    mamba_d_head: Size | None = None
    mamba_n_groups: Size = 1
    mamba_d_state: Size = 256
    mamba_d_conv: Size = 4
    mamba_expand: float = 2.0
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mamba_n_heads * self.state_head_size != self.width:
            raise SystolicError("mamba_n_heads * mamba_d_head is not the width of the state space")

    @property
    def width(self) -> int:
        return int(self.mamba_expand * self.hidden_size)

    @property
    def state_head_size(self) -> int:
        return self.mamba_d_head or self.width // self.mamba_n_heads

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def layer(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        name = f"model.layers.{i}"
        with scope("mix"):
            x = (x + self.mix(self.norm(x, f"{name}.input_layernorm"), i, cos_sin)).named("x")
        with scope("mlp"):
            branch = self.mlp(self.norm(x, f"{name}.pre_ff_layernorm"), f"{name}.feed_forward")
            return (x + branch).named("x")

    def mix(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        """What layer ``i`` takes from other tokens."""
        raise NotImplementedError

    def mixer(self) -> HeadStates:
        return HeadStates(
            hidden_size=self.hidden_size,
            heads=self.mamba_n_heads,
            head_size=self.state_head_size,
            groups=self.mamba_n_groups,
            state_size=self.mamba_d_state,
            kernel=self.mamba_d_conv,
            eps=self.rms_norm_eps,
            activation=self.hidden_act,
            bias=self.mamba_proj_bias,
            output_bias=self.mamba_proj_bias,
            convolution_bias=self.mamba_conv_bias,
            time_step_limit=self.time_step_limit or (0.0, math.inf),
        )

    def mlp(self, x: Stream, name: str) -> Stream:
        return gated_mlp(x, name, self.intermediate_size, self.hidden_act, bias=self.mlp_bias)


@dataclass(frozen=True, kw_only=True)
class Bamba(StateSpaceDecoder):
    attn_layer_indices: tuple[int, ...] | None = None

    def rope(self) -> Rope:
        """Half of each head is turned, unless ``rope_parameters`` says otherwise."""
        return RotaryDecoder.rope(replace(self, partial_rotary_factor=0.5))

    def mix(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        if i in (self.attn_layer_indices or ()):
            return self.attend(x, i, cos_sin)
        return self.mixer().mix(x, f"model.layers.{i}.mamba")


@dataclass(frozen=True, kw_only=True)
class FalconH1(StateSpaceDecoder):
    max_position_embeddings: Size = 8192
    mamba_d_ssm: Size | None = 1024
    mamba_norm_before_gate: bool = True
    mamba_rms_norm: bool = False
    projectors_bias: bool = False
    lm_head_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    mlp_multipliers: tuple[float, ...] | None = None  # of the gate before its activation, of the output
    key_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    attention_in_multiplier: float = 1.0
    ssm_multipliers: tuple[float, ...] | None = None
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mlp_multipliers or (1.0, 1.0)) != 2:
            raise SystolicError("mlp_multipliers must hold two numbers")

    @property
    def width(self) -> int:
        return self.mamba_d_ssm or super().width

    def mixer(self) -> HeadStates:
        return replace(
            super().mixer(),
            output_bias=self.projectors_bias,
            normalised=self.mamba_rms_norm,
            gate_first=not self.mamba_norm_before_gate,
            multipliers=self.ssm_multipliers or (1.0,) * 5,
        )

    def mix(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        states = self.mixer().mix(x * self.ssm_in_multiplier, f"model.layers.{i}.mamba")
        attended = self.attend(x * self.attention_in_multiplier, i, cos_sin)
        return states * self.ssm_out_multiplier + attended * self.attention_out_multiplier

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        q, k, v = super().heads(x, name)
        return q, k * self.key_multiplier, v

    def mlp(self, x: Stream, name: str) -> Stream:
        gate_scale, scale = self.mlp_multipliers or (1.0, 1.0)
        width, bias = self.intermediate_size, self.mlp_bias
        gate = activation(self.hidden_act)(linear(x, f"{name}.gate_proj", width, bias=bias) * gate_scale)
        up = linear(x, f"{name}.up_proj", width, bias=bias)
        return linear(gate * up, f"{name}.down_proj", self.hidden_size, bias=bias) * scale

    def embed(self, token: Stream) -> Stream:
        return super().embed(token) * self.embedding_multiplier

    def head(self, x: Stream) -> Stream:
        return super().head(x) * self.lm_head_multiplier


# Files hold the factors of the projection, too, which the config gives.
_FALCON_H1_NAMING = replace(LLAMA_NAMING, buffers=(*LLAMA_NAMING.buffers, r"mamba\.mup_vector"))
FAMILIES = {
    "bamba": Family(Bamba, LLAMA_NAMING, without_auto),
    "falcon_h1": Family(FalconH1, _FALCON_H1_NAMING, without_auto),
}

"""Zamba and Zamba 2: layers of state spaces, some of which are fed by an attention block that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import concatenate, einsum, exp, feedback, parameter, split, zeros
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import (
    activation,
    attention,
    depthwise_convolution,
    embedding,
    gated_mlp,
    linear,
    rms_norm,
    softplus,
)
from ..family import Family
from ..rope import CosSin, RopeFields, rotate, rotation
from ..spec import Size
from ..state_space import HeadStates
from ..weights import Naming
from .mamba import without_auto

OLDER_NAMES = {"mamba": "linear_attention"}


@dataclass(frozen=True, kw_only=True)
class SharedBlockDecoder(RopeFields):
    """The frame of both: a shared block sees the stream and the token's embedding side by side, and what it
    makes of them is added to the input of the state space, not to the stream."""

    # How training began, how the library computes and how many logits it returns; repetitions of sizes.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "time_step_max", "time_step_floor", "use_mamba_kernels", "use_mem_eff_path", "chunk_size",
        "use_associative_scan", "num_logits_to_keep", "kv_channels", "num_query_groups", "hybrid_layer_ids",
        "attention_hidden_size", "attention_head_dim", "mamba_headdim", "num_hidden_layers",
    })  # fmt: skip
    aliases: ClassVar[dict[str, str]] = {"layer_types": "layers_block_type"}
    shared_name: ClassVar[str]

    vocab_size: Size = 32000
    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    max_position_embeddings: Size = 4096
    layers_block_type: tuple[str, ...] | None = None
    hidden_act: str = "gelu"
    rms_norm_eps: float = 1e-5
    mamba_d_state: Size
    mamba_d_conv: Size = 4
    mamba_expand: int = 2
    time_step_min: float = 0.001
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds() if kind not in ("linear_attention", "hybrid")]
        if unknown:
            raise SystolicError(f"a layer is linear_attention or hybrid, not {unknown[0]!r}")
        if self.num_attention_heads % self.key_heads or 2 * self.hidden_size % self.num_attention_heads:
            raise SystolicError("num_attention_heads fits neither the keys nor the hidden_size")

    @property
    def key_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return 2 * self.hidden_size // self.num_attention_heads

    @property
    def width(self) -> int:
        return self.mamba_expand * self.hidden_size

    def kinds(self) -> Sequence[str]:
        """What each layer is: hybrid ones are fed by a shared block."""
        if self.layers_block_type is None:
            return self.default_kinds()
        return [OLDER_NAMES.get(kind, kind) for kind in self.layers_block_type]

    def default_kinds(self) -> Sequence[str]:
        raise NotImplementedError

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        with scope("embed"):
            embedded = x = embedding(token, "model.embed_tokens", self.vocab_size, self.hidden_size)
            cos_sin = self.turns()
        kinds = self.kinds()
        hybrids = [i for i, kind in enumerate(kinds) if kind == "hybrid"]
        for i, kind in enumerate(kinds):
            name, inner = f"model.layers.{i}", x
            if kind == "hybrid":
                with scope(f"layers.{i}.shared"):
                    both = concatenate([x, embedded])
                    inner = x + linear(
                        self.shared(both, hybrids, hybrids.index(i), cos_sin),
                        f"{name}.linear",
                        self.hidden_size,
                    )
                name = f"{name}.mamba_decoder"
            with scope(f"layers.{i}.mamba"):
                normed = rms_norm(inner, f"{name}.input_layernorm", self.rms_norm_eps)
                x = (x + self.mamba(normed, f"{name}.mamba")).named("x")
        with scope("head"):
            x = rms_norm(x, "model.final_layernorm", self.rms_norm_eps)
            head = "model.embed_tokens" if self.tie_word_embeddings else "lm_head"
            return {"logits": linear(x, head, self.vocab_size).named("logits")}

    def turns(self) -> CosSin | None:
        """Cosine and sine where queries and keys are rotated."""
        return None

    def block(self, hybrids: Sequence[int], use: int) -> str:
        """The name of the block of the ``use``-th hybrid layer: that of the layer which uses it first.

        The library shares blocks only where it shares the embedding; else each layer has its own.
        """
        first = use % self.blocks if self.tie_word_embeddings else use
        return f"model.layers.{hybrids[first]}.{self.shared_name}"

    @property
    def blocks(self) -> int:
        """How many blocks there are, used in turn."""
        return 1

    def shared(self, both: Stream, hybrids: Sequence[int], use: int, cos_sin: CosSin | None) -> Stream:
        name = self.block(hybrids, use)
        x = rms_norm(both, f"{name}.input_layernorm", self.rms_norm_eps)
        x = self.attend(x, f"{name}.self_attn", use, cos_sin)
        x = rms_norm(x, f"{name}.pre_ff_layernorm", self.rms_norm_eps)
        return self.mlp(x, f"{name}.feed_forward", use)

    def attend(self, x: Stream, name: str, use: int, cos_sin: CosSin | None) -> Stream:
        heads, keys, size = self.num_attention_heads, self.key_heads, self.head_size
        q = self.project(x, name, "q", heads * size, use).reshape(keys, heads // keys, size)
        k = self.project(x, name, "k", keys * size, use).reshape(keys, size)
        v = self.project(x, name, "v", keys * size, use).reshape(keys, size)
        if cos_sin is not None:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        mixed = attention(q, k, v, scale=(size / 2) ** -0.5).reshape(heads * size)
        return linear(mixed, f"{name}.o_proj", self.hidden_size)

    def project(self, x: Stream, name: str, part: str, size: int, use: int) -> Stream:
        return linear(x, f"{name}.{part}_proj", size)

    def mlp(self, x: Stream, name: str, use: int) -> Stream:
        raise NotImplementedError

    def mamba(self, x: Stream, name: str) -> Stream:
        """The state space of a layer."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Zamba(SharedBlockDecoder):
    """Channels with states of their own, in heads that each have their own projections."""

    shared_name: ClassVar[str] = "shared_transf"

    hidden_size: Size = 3712
    intermediate_size: Size = 14848
    num_hidden_layers: Size = 76
    num_attention_heads: Size = 16
    num_key_value_heads: Size | None = 16
    attn_layer_period: Size = 6
    attn_layer_offset: int = 4
    n_mamba_heads: Size = 2
    hidden_mamba_act: str = "silu"
    mamba_d_state: Size = 16
    mamba_dt_rank: Size | None = None
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False

    def default_kinds(self) -> Sequence[str]:
        period, offset = self.attn_layer_period, self.attn_layer_offset
        later = (i % period == offset for i in range(self.num_hidden_layers - 3))
        shared = [False, False, True, *later]
        return ["hybrid" if is_shared else "linear_attention" for is_shared in shared]

    def mlp(self, x: Stream, name: str, use: int) -> Stream:
        return gated_mlp(x, name, self.intermediate_size, self.hidden_act)

    def mamba(self, x: Stream, name: str) -> Stream:
        width, heads, act = self.width, self.n_mamba_heads, activation(self.hidden_mamba_act)
        pairs = linear(x, f"{name}.in_proj", 2 * width, bias=self.mamba_proj_bias).reshape(width, 2)
        inner, gate = pairs[:, 0], pairs[:, 1]
        convolved = depthwise_convolution(
            inner.named("inner"), f"{name}.conv1d", self.mamba_d_conv, bias=self.mamba_conv_bias
        )
        y = self.scan(act(convolved).reshape(heads, width // heads), name)
        y = y.reshape(width) * activation("silu")(gate)
        return linear(y, f"{name}.out_proj", self.hidden_size, bias=self.mamba_proj_bias)

    def scan(self, x: Stream, name: str) -> Stream:
        """y = C s + D x, where s = exp(dt A) s' + dt B x, s' is the state before: [heads, width / heads]."""
        (heads, width), size = x.node.tensor.static_shape, self.mamba_d_state
        rank = self.mamba_dt_rank or math.ceil(self.hidden_size / 16)
        weight = parameter(f"{name}.x_proj_weight", (heads, rank + 2 * size, width))
        low, enter, leave = split(einsum("hc,hnc->hn", x, weight), [rank, size, size])
        dt = einsum("hr,hcr->hc", low, parameter(f"{name}.dt_proj_weight", (heads, width, rank)))
        dt = softplus(dt + parameter(f"{name}.dt_proj_bias", (heads, width))).named("dt")
        rate = -exp(parameter(f"{name}.A_log", (heads, width, size)))
        before = feedback(zeros((heads, width, size)))
        inflow = (dt * x)[..., None] * enter[:, None]
        state = before.close((exp(dt[..., None] * rate) * before + inflow).named("state"))
        return einsum("hcn,hn->hc", state, leave) + parameter(f"{name}.D", (heads, width)) * x


@dataclass(frozen=True, kw_only=True)
class Zamba2(SharedBlockDecoder):
    """Heads that decay as a whole; several shared blocks in turn, each use with adapters of its own."""

    shared_name: ClassVar[str] = "shared_transformer"

    hidden_size: Size = 2560
    intermediate_size: Size | None = None
    num_attention_heads: Size = 32
    mamba_d_state: Size = 64
    mamba_ngroups: Size = 1
    n_mamba_heads: Size = 8
    use_conv_bias: bool = True  # the library has a bias whatever this says
    add_bias_linear: bool = False
    num_mem_blocks: Size = 1
    use_shared_attention_adapter: bool = False
    adapter_rank: Size = 128
    use_mem_rope: bool = False
    use_long_context: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_long_context:
            object.__setattr__(self, "max_position_embeddings", 16384)
        if self.width % self.n_mamba_heads:
            raise SystolicError("n_mamba_heads does not divide mamba_expand * hidden_size")

    def default_kinds(self) -> Sequence[str]:
        behind = (6, *[5] * 6, 4, 3)  # how many layers come before each hybrid one
        kinds = [kind for count in behind for kind in (*_run(count), "hybrid")]
        return [*kinds, *_run(2)]

    def turns(self) -> CosSin | None:
        return rotation(self.rope(), self.head_size) if self.use_mem_rope else None

    @property
    def blocks(self) -> int:
        return self.num_mem_blocks

    def project(self, x: Stream, name: str, part: str, size: int, use: int) -> Stream:
        y = super().project(x, name, part, size, use)
        if not self.use_shared_attention_adapter:
            return y
        return y + self.adapt(x, f"{name}.linear_{part}_adapter_list.{use}", 2 * self.hidden_size)

    def adapt(self, x: Stream, name: str, size: int) -> Stream:
        return linear(linear(x, f"{name}.0", self.adapter_rank), f"{name}.1", size)

    def mlp(self, x: Stream, name: str, use: int) -> Stream:
        width, bias = self.intermediate_size or 4 * self.hidden_size, self.add_bias_linear
        both = linear(x, f"{name}.gate_up_proj", 2 * width, bias=bias)
        both = both + self.adapt(x, f"{name}.gate_up_proj_adapter_list.{use}", 2 * width)
        gate, up = split(both, [width, width])
        hidden = activation(self.hidden_act)(gate) * up
        return linear(hidden, f"{name}.down_proj", self.hidden_size, bias=bias)

    def mamba(self, x: Stream, name: str) -> Stream:
        return HeadStates(
            hidden_size=self.hidden_size,
            heads=self.n_mamba_heads,
            head_size=self.width // self.n_mamba_heads,
            groups=self.mamba_ngroups,
            state_size=self.mamba_d_state,
            kernel=self.mamba_d_conv,
            eps=1e-5,
            bias=self.add_bias_linear,
            output_bias=self.add_bias_linear,
            time_step_limit=(self.time_step_min, math.inf),
        ).mix(x, name)


def _run(count: int) -> list[str]:
    return ["linear_attention"] * count


# Files may repeat a shared block in each layer that uses it, with the adapters of all layers.
_NAMING = Naming(
    "model.",
    unused=(r"model\.layers\.\d+\.shared_transf(ormer)?\..*",),
    tied={"lm_head.weight": "model.embed_tokens.weight"},
)
FAMILIES = {"zamba": Family(Zamba, _NAMING, without_auto), "zamba2": Family(Zamba2, _NAMING, without_auto)}

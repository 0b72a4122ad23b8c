"""StableLM: a Llama with layer norms, part of each head turned, and perhaps a norm for each head."""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.language import parameter, stack
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ..blocks import layer_norm, standardize
from ..decoder import RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class StableLm(RotaryDecoder):
    max_position_embeddings: Size = 4096
    num_key_value_heads: Size | None = 32
    partial_rotary_factor: float | None = 0.25
    layer_norm_eps: float = 1e-5
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False

    @property
    def qkv_bias(self) -> bool:
        return self.use_qkv_bias

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.layer_norm_eps)

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        q, k, v = super().heads(x, name)
        if self.qk_layernorm:
            q, k = self.head_norm(q, f"{name}.q_layernorm"), self.head_norm(k, f"{name}.k_layernorm")
        return q, k, v

    def head_norm(self, x: Stream, name: str) -> Stream:
        """Each head [D] of ``x`` standardized, times a weight of its own."""
        *heads, size = x.node.tensor.static_shape
        count = x.node.tensor.size // size
        weights = stack([parameter(f"{name}.norms.{h}.weight", (size,)) for h in range(count)])
        return standardize(x, self.layer_norm_eps) * weights.reshape(*heads, size)

    def layer(self, x: Stream, i: int, cos_sin: CosSin | None) -> Stream:
        if not self.use_parallel_residual:
            return super().layer(x, i, cos_sin)
        name = f"model.layers.{i}"
        with scope("attn"):
            normal = self.norm(x, f"{name}.input_layernorm")
            attended = self.attend(normal, i, cos_sin)
        with scope("mlp"):
            return (x + attended + self.mlp(normal, f"{name}.mlp")).named("x")


FAMILIES = {"stablelm": Family(StableLm, LLAMA_NAMING)}

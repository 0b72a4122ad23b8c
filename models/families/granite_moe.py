"""Granite with experts, and with one more that every token visits: files keep all experts in one tensor."""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.language import parameter, split
from ...compiler.stream import Stream
from ..blocks import activation, linear
from ..experts import mix_experts, routed_linear, router_logits, softmax_of_chosen
from ..family import LLAMA_NAMING, Family
from ..spec import Size
from .granite import Granite


@dataclass(frozen=True, kw_only=True)
class GraniteMoe(Granite):
    intermediate_size: Size = 11008
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2

    def mlp(self, x: Stream, name: str) -> Stream:
        return self.experts(x, name.replace(".mlp", ".block_sparse_moe")) * self.residual_multiplier

    def experts(self, x: Stream, name: str) -> Stream:
        experts, width, size = self.num_local_experts, self.intermediate_size, self.hidden_size
        logits = router_logits(x, f"{name}.router.layer", experts)
        chosen, shares = softmax_of_chosen(logits, self.num_experts_per_tok)
        first = parameter(f"{name}.input_linear.weight", (experts, 2 * width, size))
        second = parameter(f"{name}.output_linear.weight", (experts, size, width))
        gate, up = split(routed_linear(x, first, chosen), [width, width])
        hidden = activation(self.hidden_act)(gate) * up
        return mix_experts(routed_linear(hidden, second, chosen), shares)


@dataclass(frozen=True, kw_only=True)
class GraniteMoeShared(GraniteMoe):
    shared_intermediate_size: int = 0

    def experts(self, x: Stream, name: str) -> Stream:
        routed, width = super().experts(x, name), self.shared_intermediate_size
        if width == 0:
            return routed
        name = name.replace(".block_sparse_moe", ".shared_mlp")
        gate, up = split(linear(x, f"{name}.input_linear", 2 * width), [width, width])
        hidden = activation(self.hidden_act)(gate) * up
        return routed + linear(hidden, f"{name}.output_linear", self.hidden_size)


FAMILIES = {
    "granitemoe": Family(GraniteMoe, LLAMA_NAMING),
    "granitemoeshared": Family(GraniteMoeShared, LLAMA_NAMING),
}

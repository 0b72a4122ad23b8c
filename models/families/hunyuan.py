"""Hunyuan (dense): a Llama that norms each query and key head behind its rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..decoder import RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import SCALINGS, CosSin, NtkRope, Rope
from ..spec import Config

# Token ids, and what files say of the architecture beside what decides it.
_NOTES = frozenset(
    [
        "attention_head_dim",
        "cla_share_factor",
        "eod_token_id",
        "im_end_id",
        "im_newline_id",
        "im_start_id",
        "norm_type",
        "num_experts",
        "org_vocab_size",
        "text_end_id",
        "text_start_id",
        "use_qk_norm",
    ]
)


@dataclass(frozen=True, kw_only=True)
class HunyuanDense(RotaryDecoder):
    turns_whole_heads: ClassVar[bool] = True
    harmless: ClassVar[frozenset[str]] = _NOTES

    rms_norm_eps: float = 1e-5
    attention_bias: bool = False

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def scalings(self, settings: Config) -> dict[str, type[Rope]]:
        """With an ``alpha``, what files call dynamic does not depend on the length."""
        return {**SCALINGS, "dynamic": NtkRope} if settings.values.get("alpha") else SCALINGS

    def rotated(self, q: Stream, k: Stream, name: str, cos_sin: CosSin) -> tuple[Stream, Stream]:
        q, k = super().rotated(q, k, name, cos_sin)
        return self.norm(q, f"{name}.query_layernorm"), self.norm(k, f"{name}.key_layernorm")


FAMILIES = {"hunyuan_v1_dense": Family(HunyuanDense, LLAMA_NAMING)}

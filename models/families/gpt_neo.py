"""GPT-Neo: scores that are not scaled; every other layer sees only a window of the past."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..family import Family
from ..gpt import GptDecoder, Names
from ..positions import learned_positions
from ..spec import Config, Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class GptNeo(GptDecoder):
    names: ClassVar[Names] = Names(
        embedding="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn.attention",
        output="attn.attention.out_proj",
        up="mlp.c_fc",
        down="mlp.c_proj",
    )
    aliases: ClassVar[dict[str, str]] = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "layer_norm_eps",
    }
    harmless: ClassVar[frozenset[str]] = frozenset({"attention_types", "embed_dropout", "resid_dropout"})

    attention_layers: tuple[str, ...]  # global or local, for each layer
    window_size: Size = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.attention_layers) != self.num_hidden_layers:
            raise SystolicError(f"attention_types must describe {self.num_hidden_layers} layers (num_layers)")
        for kind in self.attention_layers:
            if kind not in ("global", "local"):
                raise SystolicError(f"attention_types: {kind!r} is neither global nor local")

    @property
    def qkv_bias(self) -> bool:
        return False

    def score_scale(self, i: int) -> float:
        return 1.0

    def window(self, i: int) -> int | None:
        return self.window_size if self.attention_layers[i] == "local" else None

    def embed(self, token: Stream) -> Stream:
        table = learned_positions("transformer.wpe", self.max_position_embeddings, self.hidden_size)
        return super().embed(token) + table


def with_attention_layers(config: Config, stored: Collection[str] | None) -> Config:
    """``attention_types``, a list of [kinds, how often they are repeated], written out layer by layer."""
    types = config.values.get("attention_types") or [[["global", "local"], 12]]
    try:
        layers = [kind for kinds, count in types for _ in range(count) for kind in kinds]
    except (TypeError, ValueError):
        raise SystolicError(f"{config.source}: attention_types must be a list of [kinds, count]") from None
    if config.values.get("attention_layers") not in (None, layers):
        raise SystolicError(f"{config.source}: attention_layers contradicts attention_types")
    return replace(config, values={**config.values, "attention_layers": layers})


_NAMING = Naming(
    "transformer.",
    (r"h\.\d+\.attn\.attention\.\w*bias",),
    tied={"lm_head.weight": "transformer.wte.weight"},
)
FAMILIES = {"gpt_neo": Family(GptNeo, _NAMING, with_attention_layers)}

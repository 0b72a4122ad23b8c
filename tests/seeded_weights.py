"""Weights that follow from a tensor's name and shape alone, so that recorded outputs need no weights beside
them: integers of a counter-based generator, scaled so that a deep model neither fades nor explodes."""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np

# (pattern of the name, centre, spread): the first that fits; a spread of None depends on the shape.
RULES: tuple[tuple[str, float, float | None], ...] = (
    # Signs that differ, or a head that is tied to the embedding repeats the token.
    (r"^(biogpt|gpt_neox|model)\.(final_)?layer_norm\.weight$", 0.0, 1.5),
    (r"act_fn\.eps$", -0.1, 0.05),
    (r"act_fn\.(alpha_[pn]|beta)$", 0.4, 0.3),
    (r"\.shared_transf\w*\..*(_proj|_adapter_list\.\d+\.\d)\.weight$", 0.0, None),
    (r"\.A_log$", 0.0, 1.0),
    (r"\.dt_(proj_)?bias$", -0.5, 1.0),
    (r"\.recurrent_param$", -1.0, 1.0),
    (r"\.D$", 1.0, 0.5),
    (r"\.time_mix_\w+$", 0.5, 0.5),
    (r"\.time_decay$", -1.0, 1.5),
    (r"\.time_first$", 0.0, 1.0),
    (r"(embed|wte|wpe|shared)\w*(\.\w+)*\.weight$", 0.0, 0.8),
    (r"(norm|ln|LayerNorm|layernorm)\w*(\.\d+)?\.weight$", 1.0, 0.25),
    (r"\.bias$", 0.0, 0.2),
    (r"", 0.0, None),
)


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """f32 values around a centre that the tensor's name decides, evenly spread."""
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16]
    bits = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(math.prod(shape))
    even = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0  # in [-1, 1)
    centre, spread = next((c, s) for pattern, c, s in RULES if re.search(pattern, name))
    if spread is None:
        fan_in = math.prod(shape[1:]) if len(shape) == 2 else shape[-1]
        spread = 1.9 / math.sqrt(fan_in) if len(shape) > 1 else 0.25
    return (centre + spread * even).reshape(shape).astype(np.float32)


def seeded_ids(count: int, vocabulary: int, seed: int) -> np.ndarray:
    """i64[count]: token ids of a text, none of the first four, which may be special."""
    bits = np.random.Philox(key=seed).random_raw(count)
    return (4 + bits % np.uint64(vocabulary - 4)).astype(np.int64)


def seeded_adapter(adapter: str, shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """The tensors of an adapter by the names that peft has for them; a copy of the model's is the model's."""
    tensors = {}
    for name, shape in shapes.items():
        is_copy = name.endswith(".base_layer.weight")
        own = (
            name.removeprefix("base_model.model.").replace(".base_layer", "")
            if is_copy
            else f"{adapter}/{name}"
        )
        tensors[name] = seeded_tensor(own, tuple(shape), seed)
    return tensors

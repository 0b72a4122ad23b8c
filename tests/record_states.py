"""Records what transformers keeps from token to token, for the default config of each of its model types.

    pip install torch transformers && python tests/record_states.py MODEL_TYPE ...

Nothing is computed: the models run without weights or values (torch's meta device). Written to
tests/library_states.json: the config, the bytes that each token adds, and those that do not grow, in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers

RECORD = Path(__file__).parent / "library_states.json"
TOKENS = (32, 33)  # fewer than any window has
# Where the default config is not a model: values of a published one.
COMPLETED = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "glm4_moe": {"head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 48, "head_dim": 128},
}


def kept_bytes(cache) -> int:
    """Bytes of all tensors that an object holds, however deep, each once."""
    seen: dict[int, int] = {}
    pending, visited = [cache], {}  # visited objects stay alive, so that no id is used again
    while pending:
        item = pending.pop()
        if id(item) in visited or isinstance(item, (str, int, float, type(None), torch.nn.Module)):
            continue
        visited[id(item)] = item
        if isinstance(item, torch.Tensor):
            if item.dim() > 1:  # counters and positions are not state
                seen[id(item)] = item.numel() * item.element_size()
        elif isinstance(item, dict):
            pending += list(item.values())
        elif isinstance(item, (list, tuple)):
            pending += list(item)
        elif hasattr(item, "__dict__"):
            pending += list(vars(item).values())
    return sum(seen.values())


def model_of(config):
    encoder_decoder = config.is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if encoder_decoder else transformers.AutoModelForCausalLM
    if config.model_type == "whisper":
        auto = transformers.AutoModelForSpeechSeq2Seq
    for experts in ("batched_mm", None):
        try:
            with torch.device("meta"):
                options = {"experts_implementation": experts} if experts else {}
                return auto.from_config(config, dtype=torch.float32, attn_implementation="eager", **options)
        except (TypeError, ValueError, KeyError):
            if experts is None:
                raise
    raise AssertionError


def cache_after(model, tokens: int) -> int:
    ids = torch.zeros((1, tokens), dtype=torch.int64, device="meta")
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            source = torch.zeros((1, 16), dtype=torch.int64, device="meta")
            inputs = {"input_ids": source}
            if model.config.model_type == "whisper":
                frames = 2 * model.config.max_source_positions
                inputs = {
                    "input_features": torch.zeros((1, model.config.num_mel_bins, frames), device="meta")
                }
            output = model(**inputs, decoder_input_ids=ids, use_cache=True)
        else:
            output = model(input_ids=ids, use_cache=True)
    names = ("past_key_values", "cache_params", "state")
    cache = next(getattr(output, name) for name in names if getattr(output, name, None) is not None)
    return kept_bytes(cache)


def main() -> None:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for model_type in sys.argv[1:]:
        config = transformers.AutoConfig.for_model(model_type, **COMPLETED.get(model_type, {}))
        try:
            model = model_of(config)
            first, second = (cache_after(model, tokens) for tokens in TOKENS)
        except Exception as error:  # whatever the library cannot run without values
            print(f"{model_type}: {type(error).__name__}: {str(error)[:150]}")
            continue
        growing = second - first
        shown = {"growing": growing, "fixed": first - TOKENS[0] * growing}
        record[model_type] = {**shown, "config": json.loads(config.to_json_string())}
        print(model_type, shown)
    RECORD.write_text(json.dumps(dict(sorted(record.items()))) + "\n")


if __name__ == "__main__":
    main()

"""Records what transformers computes for the configs in tests/recorded, with weights made from their names.

    pip install torch transformers && python tests/record_families.py [CASE ...]

A case is a folder with a config.json as hub files have it. Written beside it: ``tensors.json`` (names and
shapes in the checkpoint) and ``outputs.npz``. A seed is accepted when no greedy choice is a near-tie, and
when decoding with the library's cache chooses what recomputing everything does; cases that name
``"recompute"`` in case.json are those where the library's cache is known to give something else, and
those that name an ``"attention"`` those where its eager attention does.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from seeded_weights import seeded_ids, seeded_tensor

RECORDED = Path(__file__).parent / "recorded"
PROMPT, NEW, KEPT = 21, 16, 8  # tokens; the logits of the last KEPT positions of the prompt are kept
MARGIN = 2e-3  # between the best and the second best logit
SEEDS = 60
# What the library writes although it computes it.
COMPUTED = re.compile(r"\.(slope_rate|(query|key|diagonal)_decay)$")


def class_of(config):
    return getattr(transformers, config.architectures[0])


def checkpoint(folder: Path, config, seed: int, shapes: dict[str, list[int]]) -> None:
    tensors = {name: seeded_tensor(name, tuple(shape), seed) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shapes_of(config) -> dict[str, list[int]]:
    """Names and shapes as the library saves them."""
    with tempfile.TemporaryDirectory() as folder:
        class_of(config)(config).save_pretrained(folder)
        stored = load_file(Path(folder) / "model.safetensors")
    return {name: list(t.shape) for name, t in sorted(stored.items()) if not COMPUTED.search(name)}


def loaded(case: Path, config, seed: int, shapes: dict[str, list[int]], attention: str):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text((case / "config.json").read_text())
        checkpoint(Path(folder), config, seed, shapes)
        model, report = class_of(config).from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
        )
    missing = {name for name in report["missing_keys"] if not COMPUTED.search(name)}
    wrong = missing | set(report["unexpected_keys"])
    assert not wrong, wrong
    return model.eval()


def decoder_outputs(model, ids: np.ndarray, recompute: bool) -> dict[str, np.ndarray] | None:
    """Logits and greedy tokens of a model of one clock; None where a choice is too close."""
    tokens = ids.tolist()
    for _ in range(NEW):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        best = logits.topk(2).values
        if best[0] - best[1] < MARGIN:
            return None
        tokens.append(int(logits.argmax()))
    if not recompute:
        cached = greedy(model, ids)
        assert cached == tokens, "the library's cache chooses other tokens"
    if len(set(tokens[PROMPT:])) < 4:  # a model that repeats itself shows little
        return None
    logits = model(input_ids=torch.tensor(ids[None]), use_cache=False).logits[0, -KEPT:]
    return {"ids": ids, "logits": logits.numpy(), "greedy": np.array(tokens[len(ids) :])}


def encoder_outputs(model, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What a model that reads a whole text yields, under our names; of each position the last KEPT."""
    outputs, inputs = {"ids": ids}, {"input_ids": torch.tensor(ids[None])}
    types = getattr(model.config, "type_vocab_size", 0)
    if "token_type_ids" in inspect.signature(model.forward).parameters and types:
        outputs["token_type_ids"] = np.arange(len(ids)) * types // len(ids)
        inputs["token_type_ids"] = torch.tensor(outputs["token_type_ids"][None])
    result = {**model(**inputs), **model.base_model(**inputs)}  # without the heads, and with them
    is_electra = type(model).__name__ == "ElectraForPreTraining"
    for name, theirs in (
        ("last_hidden", "last_hidden_state"),
        ("pooled", "pooler_output"),
        ("mlm_logits", "prediction_logits"),
        ("replaced_logits" if is_electra else "mlm_logits", "logits"),
        ("nsp_logits", "seq_relationship_logits"),
        ("sop_logits", "sop_logits"),
    ):
        if result.get(theirs) is not None:
            outputs[name] = result[theirs][0].numpy()
            if len(outputs[name]) == len(ids):
                outputs[name] = outputs[name][-KEPT:]
    return outputs


def encoder_decoder_outputs(
    model, source: np.ndarray, name: str, settings: Path
) -> dict[str, np.ndarray] | None:
    """What is read of a source, logits of a target behind it, and greedy tokens: with nothing forced, and
    as ``settings`` (generation_config.json) say, where a case has them; None where a choice is too close.
    ``name`` is that of the source."""
    read = {name: torch.tensor(source[None])}
    start = model.config.decoder_start_token_id
    vocabulary = getattr(model.config, "decoder_vocab_size", model.config.vocab_size)
    tokens, target = [start], [start, *seeded_ids(PROMPT, vocabulary, NEW).tolist()]
    for _ in range(NEW):
        logits = model(**read, decoder_input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        best = logits.topk(2).values
        if best[0] - best[1] < MARGIN:
            return None
        tokens.append(int(logits.argmax()))
    plain = {"max_new_tokens": NEW, "do_sample": False, "decoder_start_token_id": start, "pad_token_id": 0}
    model.generation_config = transformers.GenerationConfig()
    cached = continued(model, read, transformers.GenerationConfig(**plain))
    assert cached == tokens, "the library's cache chooses other tokens"
    if len(set(tokens)) < 4:  # a model that repeats itself shows little
        return None
    result = model(**read, decoder_input_ids=torch.tensor([target]), use_cache=False)
    outputs = {
        "source": source,
        "target": np.array(target),
        "encoded": result.encoder_last_hidden_state[0, -KEPT:].numpy(),
        "logits": result.logits[0, -KEPT:].numpy(),
        "greedy": np.array(tokens[1:]),
    }
    if settings.exists():
        configured = transformers.GenerationConfig.from_pretrained(settings.parent)
        configured.max_new_tokens, configured.do_sample = NEW, False
        outputs["configured"] = np.array(continued(model, read, configured)[1:])
    return outputs


def continued(model, read: dict, settings) -> list[int]:
    """All tokens of the target, by the plain loop, which also Whisper's own ends up in."""
    generate = transformers.GenerationMixin.generate
    return generate(model, **read, generation_config=settings)[0].tolist()


def source_of(config, seed: int) -> tuple[np.ndarray, str]:
    """What an encoder-decoder reads, and how the library calls it: sound or the ids of a text."""
    if hasattr(config, "num_mel_bins"):
        frames = np.random.default_rng(seed).normal(
            size=(config.num_mel_bins, 2 * config.max_source_positions)
        )
        return frames.astype(np.float32), "input_features"
    return seeded_ids(PROMPT, config.vocab_size, seed), "input_ids"


def greedy(model, ids: np.ndarray, **inputs) -> list[int]:
    model.generation_config = transformers.GenerationConfig()  # else its end of the text ends this one
    settings = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return model.generate(torch.tensor(ids[None]), generation_config=settings, **inputs)[0].tolist()


def record(case: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(case)
    options = json.loads((case / "case.json").read_text()) if (case / "case.json").exists() else {}
    shapes = shapes_of(config)
    for seed in range(SEEDS):
        model = loaded(case, config, seed, shapes, options.get("attention", "eager"))
        ids = seeded_ids(PROMPT, config.get_text_config().vocab_size, seed)
        with torch.no_grad():
            if config.is_encoder_decoder:
                settings = case / "generation_config.json"
                outputs = encoder_decoder_outputs(model, *source_of(config, seed), settings)
            elif model.can_generate():
                outputs = decoder_outputs(model, ids, options.get("recompute", False))
            else:
                outputs = encoder_outputs(model, ids)
        if outputs is not None:
            (case / "tensors.json").write_text(json.dumps(shapes, indent=0) + "\n")
            np.savez_compressed(case / "outputs.npz", seed=np.array(seed), **outputs)
            print(f"{case.name}: seed {seed}, {outputs['greedy'].tolist() if 'greedy' in outputs else ''}")
            return
    raise SystemExit(f"{case.name}: no seed of {SEEDS} keeps its choices apart")


def main() -> None:
    torch.set_num_threads(1)
    chosen = [RECORDED / name for name in sys.argv[1:]] or sorted(RECORDED.iterdir())
    for case in chosen:
        record(case)


if __name__ == "__main__":
    main()

"""Records what peft computes with the adapters in tests/recorded_adapters, with weights made from names.

    pip install torch transformers peft && python tests/record_adapters.py [CASE ...]

A case is a folder with a config.json and one folder for each adapter, which has an adapter_config.json.
Written beside them: ``tensors.json`` (names and shapes of the model's tensors, and of each adapter's) and
``outputs.npz``, with logits and greedy tokens of the model alone and with each adapter. Adapters are not
merged. A seed is accepted when no greedy choice is a near-tie and when every adapter says something else.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from record_families import MARGIN, class_of, loaded, shapes_of
from safetensors.numpy import load_file, save_file
from seeded_weights import seeded_adapter, seeded_ids

RECORDED = Path(__file__).parent / "recorded_adapters"
PROMPT, NEW, KEPT, SEEDS = 13, 8, 4, 200


def adapter_shapes(model, folder: Path) -> dict[str, list[int]]:
    """Names and shapes of an adapter's tensors, as peft saves them."""
    with tempfile.TemporaryDirectory() as out:
        settings = peft.PeftConfig.from_pretrained(folder)
        settings.inference_mode = False
        peft.get_peft_model(model, settings).save_pretrained(out)
        stored = load_file(Path(out) / "adapter_model.safetensors")
    return {name: list(tensor.shape) for name, tensor in sorted(stored.items())}


def outputs(model, ids: np.ndarray) -> dict[str, np.ndarray] | None:
    """Logits of the last positions of a prompt, and greedy tokens; None where a choice is too close."""
    tokens = ids.tolist()
    for _ in range(NEW):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        best = logits.topk(2).values
        if best[0] - best[1] < MARGIN:
            return None
        tokens.append(int(logits.argmax()))
    logits = model(input_ids=torch.tensor(ids[None]), use_cache=False).logits[0, -KEPT:]
    return {"logits": logits.numpy(), "greedy": np.array(tokens[len(ids) :])}


def record(case: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(case)
    shapes = {"model": shapes_of(config)}
    adapters = sorted(folder.name for folder in case.iterdir() if folder.is_dir())
    for name in adapters:
        shapes[name] = adapter_shapes(class_of(config)(config), case / name)
    for seed in range(SEEDS):
        ids = seeded_ids(PROMPT, config.vocab_size, seed)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            found = {"model": outputs(loaded(case, config, seed, shapes["model"], "eager"), ids)}
            for name in adapters:
                place = Path(folder) / name
                place.mkdir()
                (place / "adapter_config.json").write_text((case / name / "adapter_config.json").read_text())
                tensors = seeded_adapter(name, shapes[name], seed)
                save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
                model = loaded(case, config, seed, shapes["model"], "eager")
                found[name] = outputs(peft.PeftModel.from_pretrained(model, place).eval(), ids)
        said = {tuple(output["greedy"]) for output in found.values() if output}
        if len(said) == len(found):
            (case / "tensors.json").write_text(json.dumps(shapes, indent=0) + "\n")
            flat = {f"{name}.{key}": value for name, output in found.items() for key, value in output.items()}
            np.savez_compressed(case / "outputs.npz", seed=np.array(seed), ids=ids, **flat)
            print(f"{case.name}: seed {seed}, {sorted(said)}")
            return
    raise SystemExit(f"{case.name}: no seed of {SEEDS} keeps its choices apart")


def main() -> None:
    torch.set_num_threads(1)
    for case in [RECORDED / name for name in sys.argv[1:]] or sorted(RECORDED.iterdir()):
        record(case)


if __name__ == "__main__":
    main()

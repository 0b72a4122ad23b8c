"""The table of families in docs/families.md: what each derives as its states, beside what transformers keeps.

    python -m benchmarks.families            # writes docs/families.md, and what `systolic models` shows
    python -m benchmarks.families --check    # says whether both are up to date

Each family is measured on the default config of its class in transformers, in float32; what the library
keeps was recorded by tests/record_states.py (tests/library_states.json).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systolic.compiler.derive import choose_forms
from systolic.compiler.derive.sizes import Sizes, plan_states
from systolic.compiler.pipeline import run_passes
from systolic.ir.errors import CausalityError
from systolic.models.families import FAMILIES, build
from systolic.models.spec import Config, decode_json

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "families.md"
RECORD = ROOT / "tests" / "library_states.json"
KINDS = ROOT / "models" / "families" / "states.json"
WHOLE_TEXT = "none: every position reads the whole text"
_RECURRENT = {"vocab_size": 96, "embedding_size": 32, "hidden_size": 48, "num_layers": 2}
# Of families that are not in transformers, and have no recorded case.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gru_lm": {"model_type": "gru_lm", **_RECURRENT},
    "lstm_lm": {"model_type": "lstm_lm", **_RECURRENT},
    "wavenet_lm": {
        "model_type": "wavenet_lm",
        "vocab_size": 96,
        "channels": 32,
        "gate_channels": 32,
        "skip_channels": 32,
        "dilations": [1, 2, 4],
    },
}
SOURCE = 16  # positions of the source of an encoder-decoder, as in the record
HEADING = """# Model families

`systolic models` lists what can be loaded. Each family is a description of one token in `models/families`;
its states are derived. The table is for the default config of each `model_type` in transformers 5.23, in
float32: bytes that each further position adds, and bytes that do not grow (recurrent states, tails of
convolutions, what is read of a source of 16 positions), beside what the library's own cache holds after the
same tokens. Windows are wider than the text here. `python -m benchmarks.families` writes this page.

A tail is what a causal convolution still reads: one value less than the library keeps. Whisper's library
always keeps 1,500 positions of the source. Lines are those of the file, which may hold several families; what
they share is in `models/blocks.py` and the frames beside it (`decoder.py`, `gpt.py`, `encoder.py` …).

| model_type | file | lines | kinds of state | bytes per token | transformers | fixed bytes | transformers |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Kept:
    """What a model keeps: kinds, bytes that each token adds, bytes that do not grow."""

    kinds: tuple[str, ...]
    growing: int
    fixed: int


def kept_by(config: Mapping[str, Any]) -> Kept | None:
    """The derived states of a config for one row; None where the model cannot be decoded."""
    graph = run_passes(build(Config("config.json", config))[1])[-1].graph
    try:
        form = choose_forms(graph)[0]
        graph.certificate().raise_if_leaking()
    except CausalityError:
        return None
    sources = {clock: SOURCE for clock in graph.clocks if clock != form.plan.clock}
    states = plan_states(form.graph, form.plan, Sizes(1, 64, 1, sources)).values()
    kinds = dict.fromkeys(state.kind for state in states)
    growing = sum(state.bytes_per_token for state in states)
    return Kept(tuple(kinds), growing, sum(s.bytes for s in states if not s.bytes_per_token))


def recorded() -> dict[str, dict[str, Any]]:
    """What the library keeps, by model_type: ``growing``, ``fixed`` and the ``config``."""
    return decode_json(RECORD.read_text(encoding="utf-8"))


def page(kept: Mapping[str, Kept | None]) -> str:
    """The whole of docs/families.md."""
    record = recorded()
    rows = []
    for model_type, family in sorted(FAMILIES.items()):
        file = Path(sys.modules[family.model.__module__].__file__ or "")
        lines = len(file.read_text(encoding="utf-8").splitlines())
        cells = _cells(kept[model_type], record.get(model_type)) if model_type in kept else [""] * 5
        rows.append("| " + " | ".join([f"`{model_type}`", file.name, str(lines), *cells]) + " |")
    return HEADING + "\n".join(rows) + "\n"


def _cells(kept: Kept | None, entry: Mapping[str, Any] | None) -> list[str]:
    """The kinds, and the four numbers where the library was asked for the same config."""
    if kept is None:
        return [WHOLE_TEXT, *[""] * 4]
    if entry is None:
        return [", ".join(kept.kinds), *[""] * 4]
    numbers = (kept.growing, entry["growing"], kept.fixed, entry["fixed"])
    return [", ".join(kept.kinds), *(f"{number:,}" for number in numbers)]


def configs() -> dict[str, Mapping[str, Any]]:
    """One config of each family: the library's default, else that of the family's recorded case."""
    chosen = {model_type: entry["config"] for model_type, entry in recorded().items()}
    for model_type in FAMILIES:
        name = model_type.replace("-", "_")
        cases = sorted((ROOT / "tests" / "recorded").glob(f"{name}*/config.json"))
        found = [decode_json(case.read_text(encoding="utf-8")) for case in cases if model_type not in chosen]
        for config in (*found, CONFIGS.get(model_type, {})):
            if config.get("model_type") == model_type:
                chosen.setdefault(model_type, config)
    return {model_type: chosen[model_type] for model_type in sorted(set(chosen) & set(FAMILIES))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare with what is there")
    check = parser.parse_args().check
    kept = {model_type: kept_by(config) for model_type, config in configs().items()}
    kinds = {name: list(found.kinds) if found else [] for name, found in kept.items()}
    for file, wanted in ((PAGE, page(kept)), (KINDS, json.dumps(kinds, indent=0) + "\n")):
        if not check:
            file.write_text(wanted, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != wanted:
            raise SystemExit(f"{file} is not up to date: python -m benchmarks.families")


if __name__ == "__main__":
    main()

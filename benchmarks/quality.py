"""What fewer bits cost in quality: perplexity by how weights and how states are kept.

    python -m benchmarks.quality [--weights f32,bf16,int8] [--states f32,f16,bf16,int8] [--json] [--out FILE]

The embedded model reads the beginning of its held-out text, stories260K texts that it drew itself with f32
weights; both are in the shared data. Texts are read in windows of the model's context, by the scoring
program, which rounds the past as a step of decoding does. On NumPy: no kernel decides.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import systolic as sy
from systolic.models.load import COMPACT, WEIGHT_DTYPES

from .contest import command_line, markdown
from .subjects import ROOT

CHARACTERS = 12_000  # of the held-out tenth of the text that are read
STORIES = 11  # texts that stories260K draws
STORY = 255  # tokens of each, behind the token that begins it
STATES = ("f32", "f16", "bf16", "int8")


@dataclass(frozen=True)
class Row:
    """One model kept in one way: the perplexity of its text, bytes of its weights and of a position."""

    model: str
    weights: str
    states: str
    perplexity: float
    tokens: int
    weight_bytes: int
    state_bytes: int


def texts_of_shakespeare(file: Path) -> tuple[str, list[list[int]]]:
    """The embedded model and the beginning of its held-out text, in windows that follow each other."""
    model, text = sy.load("shakespeare"), file.read_text(encoding="utf-8")
    start = len(text) * 9 // 10
    tokenizer = sy.compile(model, backend="numpy").tokenizer
    ids = tokenizer.encode(text[start : start + CHARACTERS])
    size = model.context_length
    return "shakespeare", [ids[start : start + size] for start in range(0, len(ids), size)]


def texts_of_stories(path: Path) -> tuple[str, list[list[int]]]:
    """stories260K and what it says when tokens are drawn as likely as it finds them."""
    model = sy.load(path)
    executable = sy.compile(model, backend="numpy")
    begin = [model.bos_id or 1]
    drawn = (
        executable.generate(begin, max_new_tokens=STORY, temperature=1.0, seed=seed, ignore_eos=True)
        for seed in range(STORIES)
    )
    return str(path), [[*begin, *text] for text in drawn]


def measure(
    subjects: Sequence[tuple[str, list[list[int]]]], weights: Sequence[str], states: Sequence[str]
) -> list[Row]:
    """A row for each model, each way to keep its weights, and each to keep its states."""
    rows = []
    for name, texts in subjects:
        for dtype in weights:
            model = sy.load(name, dtype=dtype)
            for state_dtype in states:
                executable = sy.compile(model, backend="numpy", state_dtype=state_dtype)
                found = [executable.log_likelihoods(ids) for ids in texts if len(ids) > 1]
                likely = np.concatenate(found)
                rows.append(
                    Row(
                        model.name,
                        dtype,
                        state_dtype,
                        float(np.exp(-likely.mean())),
                        len(likely),
                        sum(node.tensor.bytes for node in model.graph.parameters),
                        sum(state.bytes_per_token for state in executable.states),
                    )
                )
    return rows


def table(rows: Sequence[Row]) -> str:
    """For each model: weights down, states across."""
    return "\n\n".join(
        _of_model([row for row in rows if row.model == model])
        for model in dict.fromkeys(r.model for r in rows)
    )


def _of_model(rows: Sequence[Row]) -> str:
    states = {row.states: row.state_bytes for row in rows}
    heading = [
        f"{rows[0].model}: weights",
        "bytes",
        *(f"{s} states ({n:,} bytes)" for s, n in states.items()),
    ]
    cells: Mapping[tuple[str, str], Row] = {(row.weights, row.states): row for row in rows}
    lines = [
        [dtype, f"{cells[dtype, next(iter(states))].weight_bytes / 1e6:.2f} MB"]
        + [f"{cells[dtype, state].perplexity:.3f}" for state in states]
        for dtype in dict.fromkeys(row.weights for row in rows)
    ]
    return f"{rows[0].tokens:,} tokens\n\n{markdown(heading, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=",".join((*WEIGHT_DTYPES, *COMPACT)))
    parser.add_argument("--states", default=",".join(STATES))
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    shared = Path(os.environ.get("SYSTOLIC_SHARED", ROOT.parent / "shared"))
    subjects = [
        texts_of_shakespeare(shared / "data" / "tinyshakespeare.txt"),
        texts_of_stories(shared / "real" / "stories260K"),
    ]
    rows = measure(subjects, options.weights.split(","), options.states.split(","))
    text = json.dumps({"command": command_line(), "rows": [asdict(row) for row in rows]}, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table(rows))


if __name__ == "__main__":
    main()

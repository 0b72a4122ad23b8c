"""Everything that the project is judged by, in short form: a table of what is to be reached and what is.

    python -m benchmarks.judged [--rows f32,bf16] [--model llama-0.5b] [--rounds 7] [--out FILE] [--show FILE]

Each row is a small interleaved run of one of the other benchmarks, in a process of its own, so that a row's
models are gone before the next. With ``--out``, results are written behind each row, beside those of other
rows that the file holds; ``--show`` prints the table of such a file without running anything.
``benchmarks.all`` runs the same rows, and every other table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .contest import markdown, spread
from .peers import FORMAT, OURS, is_ours
from .runs import Failed, run

MODEL = "llama-0.5b"
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """One number against one bound: reached if the median is at least, or else at most, ``bound``.
    ``than`` is whom ours was compared with, where only the results say so."""

    what: str
    bound: float
    values: Sequence[float]
    unit: str = "×"
    at_least: bool = True
    than: str = ""

    @property
    def is_met(self) -> bool:
        median = float(np.median(self.values))
        return median >= self.bound if self.at_least else median <= self.bound

    @property
    def aim(self) -> tuple[str, str]:
        """The first two cells of a row: what is to be reached."""
        return self.what, f"{'≥' if self.at_least else '≤'} {self.bound:g} {self.unit}".rstrip()

    @property
    def verdict(self) -> tuple[str, str]:
        """Two more for each machine: what is, and whether that is enough."""
        measured = f"{spread(self.values)} {self.unit} {self.than}".rstrip()
        return measured, "met" if self.is_met else "missed"


@dataclass(frozen=True)
class Row:
    """A run of a benchmark (its module and options), and what its results are judged by."""

    module: str
    options: str
    judge: Callable[[Results], list[Judgement]]


def found(results: Results, name: str) -> Results | None:
    """The row of a contestant, if it took part."""
    return next((row for row in results["rows"] if row["name"] == name), None)


def against(results: Results, bounds: Mapping[str, float], what: str) -> list[Judgement]:
    """How many times as fast as each named contestant ours is, and then its other formats."""
    rows = {name: row for name in bounds if (row := found(results, name)) is not None}
    formats = dict.fromkeys(ours for row in rows.values() for ours in row["ours_is_times"])
    names = {ours: "" if ours == OURS else f" ({ours.removeprefix(FORMAT)})" for ours in formats}
    return [
        Judgement(f"{what}{names[ours]} ÷ {name}", bounds[name], row["ours_is_times"][ours])
        for ours in formats
        for name, row in rows.items()
    ]


# ---- what each row is judged by ----


def judge_f32(results: Results) -> list[Judgement]:
    bounds = {"llama.cpp, f32": 1.2, "JAX by hand, f32": 1.1, "transformers, f32": 2.5}
    shares = [
        Judgement(
            f"{row['name'].removeprefix('systolic ')} decode, of the bandwidth", 0.9, row["of_bandwidth"], ""
        )
        for row in results["rows"]
        if is_ours(row["peer"])
    ]
    return [*shares, *against(results, bounds, "f32 decode")]


def judge_bf16(results: Results) -> list[Judgement]:
    return against(results, {"llama.cpp, bf16": 1.0, "transformers, bf16": 1.0}, "bf16 decode")


def judge_int8(results: Results) -> list[Judgement]:
    return against(results, {"llama.cpp, Q8_0": 1.0}, "int8 decode")


def judge_prefill(results: Results) -> list[Judgement]:
    """Against the fastest peer of each round."""
    judgements = []
    for dtype in ("f32", "bf16"):
        peers = [row for row in results["rows"] if row["dtype"] == dtype and not is_ours(row["peer"])]
        if peers:
            ratios = np.min([row["ours_is_times"][OURS] for row in peers], axis=0)
            best = min(peers, key=lambda row: np.median(row["ours_is_times"][OURS]))["name"]
            judgements.append(Judgement(f"prefill 512, {dtype} ÷ the best", 1.0, ratios.tolist(), than=best))
    return judgements


def judge_batch(results: Results) -> list[Judgement]:
    one, eight = found(results, "systolic f32"), found(results, "systolic f32, batch 8")
    assert one is not None
    assert eight is not None
    ratios = np.array(eight["tokens_per_second"]) / np.array(one["tokens_per_second"])
    return [Judgement("batch 8 ÷ batch 1, tokens/s, f32", 4.0, ratios.tolist())]


def judge_capacity(results: Results) -> list[Judgement]:
    small, large = (row for row in results["rows"] if row["peer"] == "systolic")
    ratios = np.array(small["tokens_per_second"]) / np.array(large["tokens_per_second"])
    return [Judgement("time per token, capacity 8192 ÷ 512", 1.05, ratios.tolist(), at_least=False)]


def judge_window(results: Results) -> list[Judgement]:
    ours = found(results, "systolic f32")
    assert ours is not None
    half = len(ours["grown_bytes"]) // 2
    grown = sum(ours["grown_bytes"][half:]) / 1e6
    memory = Judgement("window 1024, 8192 tokens: memory grew in the second half", 1.0, [grown], "MB", False)
    return [*against(results, {"JAX by hand, f32": 1.0}, "window 1024, 8192 tokens"), memory]


def judge_overhead(results: Results) -> list[Judgement]:
    pairs = {"calls of 1": "bare, waited for", "one call": "bare"}
    host, loop = (
        1e3 * (np.array(results[f"greedy: {name}"]) - np.array(results[bare])) for name, bare in pairs.items()
    )
    return [
        Judgement("overhead per token over the program, from the host", 100, host.tolist(), "µs", False),
        Judgement("overhead per token in the device loop", 10, loop.tolist(), "µs", False),
    ]


def judge_compile(results: Results) -> list[Judgement]:
    def front(layers: int) -> list[float]:
        rows = [row for row in results["rows"] if row["layers"] == layers]
        return [row["trace"] + row["passes"] for row in rows]

    ratio = [b / a / 12.5 for a, b in zip(front(80), front(1000), strict=True)]
    return [
        Judgement("80 layers, trace and passes", 1.0, front(80), "s", False),
        Judgement("1,000 layers, trace and passes", 15.0, front(1000), "s", False),
        Judgement("seconds per layer, 1,000 ÷ 80 layers", 1.25, ratio, at_least=False),
    ]


def judge_startup(results: Results) -> list[Judgement]:
    ours = found(results, "systolic")
    assert ours is not None
    state = "files not in memory" if results["settings"]["cold"] else "files in memory"
    return [
        Judgement(f"start to first token ÷ reading, {state}", 1.5, ours["times_reading"], at_least=False),
        Judgement(f"peak memory of loading ÷ weights, {state}", 1.1, ours["peak_of_weights"], at_least=False),
    ]


DECODE = "--capacity 1024 --model {model} --rounds {rounds}"
ROWS: Mapping[str, Row] = {
    "f32": Row(
        "decode",
        f"{DECODE} --dtypes f32 --tokens 8 --peers jax,transformers,llama.cpp,ours-f32-packed",
        judge_f32,
    ),
    "bf16": Row(
        "decode",
        f"{DECODE} --dtypes bf16 --tokens 16 --peers transformers,llama.cpp,ours-bf16-packed",
        judge_bf16,
    ),
    "int8": Row("decode", f"{DECODE} --dtypes int8 --tokens 32 --peers llama.cpp", judge_int8),
    "prefill": Row(
        "prefill",
        f"{DECODE} --dtypes f32,bf16 --prompt 512 --peers jax,transformers,llama.cpp",
        judge_prefill,
    ),
    "batch": Row("decode", f"{DECODE} --dtypes f32 --batch 1,8 --tokens 8 --peers none", judge_batch),
    "capacity": Row(
        "decode",
        "--model {model} --rounds {rounds} --capacity 512,8192 --tokens 12 --peers none",
        judge_capacity,
    ),
    "window": Row("memory", "--model mistral-window --tokens 8192 --peers jax", judge_window),
    "overhead": Row("decode_loop", "--layers 2 --hidden 64 --rounds {rounds}", judge_overhead),
    "compile": Row("compile_time", "--layers 80 1000 --rounds 3", judge_compile),
    "startup": Row("startup", "--model {model} --rounds {rounds}", judge_startup),
    "startup-cold": Row(
        "startup", "--model {model} --rounds {rounds} --cold --peers llama.cpp", judge_startup
    ),
}


def judgements_of(name: str, results: Results) -> list[dict[str, Any]]:
    """What a row's results are judged as, for JSON."""
    return [asdict(judgement) for judgement in ROWS[name].judge(results)]


def table(judged: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """All judgements in the order of ``ROWS`` as Markdown, by the heading of what was measured, one for each
    machine, and by row."""
    found: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
    for name in ROWS:
        for heading, judgements in judged.items():
            for judgement in (Judgement(**fields) for fields in judgements.get(name, ())):
                found.setdefault(judgement.aim, {})[heading] = judgement.verdict
    headings = ["what", "reach", *(cell for heading in judged for cell in (heading, ""))]
    rows = [
        [*aim, *(cell for heading in judged for cell in verdicts.get(heading, ("", "")))]
        for aim, verdicts in found.items()
    ]
    return markdown(headings, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write results here, beside those of other rows")
    parser.add_argument("--show", type=Path, help="only print the table of this file")
    options = parser.parse_args()
    if options.show:
        print(table({"measured": json.loads(options.show.read_text(encoding="utf-8"))["judgements"]}))
        return
    unknown = [name for name in options.rows.split(",") if name not in ROWS]
    if unknown:
        raise SystemExit(f"no row is called {unknown[0]}; known: {', '.join(ROWS)}")
    kept: dict[str, dict[str, Any]] = {"judgements": {}, "results": {}}
    if options.out and options.out.exists():
        kept = json.loads(options.out.read_text(encoding="utf-8"))
    for name in options.rows.split(","):
        row = ROWS[name]
        try:
            results = run(row.module, row.options.format(model=options.model, rounds=options.rounds)).results
        except Failed as error:
            raise SystemExit(str(error)) from None
        kept["results"][name], kept["judgements"][name] = results, judgements_of(name, results)
        if options.out:
            options.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table({"measured": kept["judgements"]}))


if __name__ == "__main__":
    main()

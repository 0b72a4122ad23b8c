"""Every table of docs/performance.md, measured anew and written there: what is judged first.

    python -m benchmarks.all [--budget-minutes 35] [--tables f32,gpt2] [--again] [--list] [--device gpu]
                             [--json benchmarks/results] [--docs docs/performance.md]

Each table is a run of one of the other benchmarks in a process of its own, so a table's models are gone
before the next. Behind each, its results are written to a JSON file, and its table between its two marks in
the page. Results belong to a processor, or to a GPU, whose folder they are in: those of others stay, and the
page has the tables of all, those behind the first folded. A table that was measured on these sources is left
as it is, without ``--again``. One that would not end within the budget, by what it took the last time, is not
begun.
``--list`` says what is there, and runs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from systolic.backends.processor import KINDS, in_words

from . import judged, machine
from .runs import Failed, run
from .subjects import ROOT

LIMIT = 3  # times what a table took the last time before it is ended
ROUNDS = 5  # of what is judged
PROGRAMS = ("ir", "compiler", "backends", "models", "runner", "benchmarks")  # what results depend on
NOT_MEASURED = ("all.py", "judged.py")
# The benchmarks that run on another device than a CPU, too.
ON_DEVICES = ("decode", "prefill", "memory", "decode_loop", "recurrent", "long_context", "serving")
Kept = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A benchmark with its options; ``seconds`` are what it takes on two cores, to begin with."""

    module: str
    options: str
    seconds: int


def _judged(name: str, seconds: int) -> Table:
    row = judged.ROWS[name]
    return Table(row.module, row.options.format(model=judged.MODEL, rounds=ROUNDS), seconds)


DECODE = "--tokens 16 --rounds 3"
# torch.compile's prompts are those of transformers.
PROMPT = "--prompt 512 --rounds 3 --peers jax,transformers,llama.cpp,onnxruntime,openvino"
OF_1B = "--model llama-1b --tokens 12 --rounds 3"  # a process for each dtype, or memory is short
TABLES: Mapping[str, Table] = {
    "f32": _judged("f32", 90),
    "bf16": _judged("bf16", 60),
    "int8": _judged("int8", 50),
    "int4": Table(
        "decode", "--model llama-0.5b --rounds 5 --dtypes int4-32,int4-64 --tokens 32 --peers llama.cpp", 60
    ),
    "prefill": _judged("prefill", 180),
    "startup": _judged("startup", 45),
    "startup-cold": _judged("startup-cold", 60),
    "parts": Table("startup", "--parts --rounds 5", 15),
    "batch": _judged("batch", 50),
    "capacity": _judged("capacity", 40),
    "overhead": _judged("overhead", 30),
    "compile": _judged("compile", 45),
    "window": _judged("window", 170),
    "decode-0.1b": Table("decode", f"--model llama-0.1b --dtypes f32,bf16,int8 {DECODE}", 150),
    "prefill-0.1b": Table("prefill", f"--model llama-0.1b --dtypes f32,bf16 {PROMPT}", 80),
    "1b-bf16": Table("decode", f"{OF_1B} --dtypes bf16 --peers jax,transformers,llama.cpp", 150),
    "1b-int8": Table("decode", f"{OF_1B} --dtypes int8 --peers jax,llama.cpp,onnxruntime,openvino", 150),
    "gpt2": Table("decode", f"--model gpt2 --dtypes f32,bf16 {DECODE}", 120),
    "prefill-gpt2": Table("prefill", f"--model gpt2 --dtypes f32 {PROMPT}", 60),
    "mamba": Table("decode", f"--model mamba-130m --dtypes f32,bf16,int8 {DECODE}", 80),
    "mistral": Table(
        "decode", f"--model mistral-window --dtypes f32 --prompt 1100 --capacity 2048 {DECODE}", 60
    ),
    "stories": Table(
        "decode", "--model stories260K --dtypes f32,int8 --capacity 512 --tokens 128 --rounds 5", 90
    ),
    "torch-compile": Table(
        "decode",
        "--model llama-0.5b --dtypes f32,bf16 --tokens 8 --rounds 3 --peers transformers,torch-compile",
        150,
    ),
    "recurrent": Table("recurrent", "--rounds 3 --tokens 24 --positions none", 200),
    "positions": Table(
        "recurrent",
        "--models mamba-130m,rwkv-169m --peers none --prompt 64 --tokens 24 --positions 100,4000",
        60,
    ),
    "states": Table("long_context", "--rounds 5", 60),
    "rolling": Table("rolling", "--rounds 16", 120),
    "serving": Table("serving", "", 20),
    "pages": Table("pages", "", 5),
    "forms": Table("forms", "", 90),
    "quality": Table("quality", "", 300),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="default: all the time")
    parser.add_argument("--tables", help=f"of {', '.join(TABLES)} (default: all that the device has)")
    parser.add_argument("--again", action="store_true", help="also what was measured on these sources")
    parser.add_argument("--list", action="store_true", help="say what is measured, on what, and end")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results", help="where results go")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "performance.md", help="the page")
    machine.add_device(parser)
    options = parser.parse_args()
    names = options.tables.split(",") if options.tables else names_on(options.device)
    unknown = [name for name in names if name not in names_on(options.device)]
    if unknown:
        known = ", ".join(names_on(options.device))
        raise SystemExit(f"no table on a {options.device} is called {unknown[0]}; known: {known}")
    try:  # in a process of its own: one that holds a device leaves no memory of it to others
        here = run("machine", f"--device {options.device}").results
    except Failed as error:
        raise SystemExit(str(error)) from None
    if options.list:
        print("\n".join(line for name in names for line in described(name, options, machine.folder_of(here))))
        return
    failed = measure_all(names, options, here)
    write_page(options.docs, options.json)
    if failed:
        sys.exit("\n".join(failed))


def names_on(device: str) -> list[str]:
    """The tables that a device has."""
    return [name for name, table in TABLES.items() if device == "cpu" or table.module in ON_DEVICES]


def measure_all(names: list[str], options: argparse.Namespace, here: Mapping[str, Any]) -> list[str]:
    """Measures on the machine that is ``here`` what there is time for, and writes it; a line for each table
    that failed."""
    end, sources, failed = time.monotonic() + 60 * options.budget_minutes, digest(), []
    folder = options.json / machine.folder_of(here)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        given, before = command(name, options.device), read(folder, name)
        if not options.again and before and is_of(before, given, sources):
            print(f"{name}: measured already", flush=True)
            continue
        expected = before["seconds"] if before else TABLES[name].seconds
        if expected > end - time.monotonic():
            print(f"{name}: not begun, it takes {expected:.0f} s", flush=True)
            continue
        try:
            limit = LIMIT * max(expected, TABLES[name].seconds)
            kept = {"machine": here, **measured(name, options.device, sources, limit)}
        except Failed as error:
            failed.append(f"{name}: {error}")
            print(failed[-1], flush=True)
            continue
        (folder / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        write_page(options.docs, options.json)
        print(f"{name}: {kept['seconds']:.0f} s", flush=True)
        if not kept["is_sound"]:
            failed.append(f"{name}: tokens differ")
    return failed


def command(name: str, device: str) -> str:
    """How a user runs one table."""
    return f"python -m benchmarks.{TABLES[name].module} {options_of(name, device)}".strip()


def options_of(name: str, device: str) -> str:
    return TABLES[name].options + (f" --device {device}" if device != "cpu" else "")


def measured(name: str, device: str, sources: str, limit: float) -> Kept:
    """Runs a table; what is kept of it."""
    found = run(TABLES[name].module, options_of(name, device), limit)
    judgements = judged.judgements_of(name, found.results) if name in judged.ROWS else []
    return {
        "command": command(name, device),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "sources": sources,
        "seconds": round(found.seconds, 1),
        "is_sound": found.is_sound,
        "judgements": judgements,
        "text": found.text,
        "results": found.results,
    }


def is_of(kept: Kept, command: str, sources: str) -> bool:
    """Whether results are those of the table as it is, on these sources."""
    return kept["sources"] == sources and kept["command"] == command and kept["is_sound"]


def machines(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The machines that have results, by their folders: processors first, those with the widest vectors
    before others, the newest before those that are older."""
    found = {}
    for file in sorted(folder.glob("*/*.json")):
        found[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))["machine"]
    order = list(KINDS)

    def place(name: str) -> tuple[int, list[int]]:
        kind, numbers = found[name]["kind"], re.findall(r"\d+", name)
        return order.index(kind) if kind in order else len(order), [-int(number) for number in numbers]

    return {name: found[name] for name in sorted(found, key=place)}


def read(folder: Path, name: str) -> Kept | None:
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def described(name: str, options: argparse.Namespace, here: str) -> list[str]:
    """A line for each machine that has the table, and for this one."""
    found = {folder: read(options.json / folder, name) for folder in [*machines(options.json), here]}
    asked = command(name, options.device)
    return [
        f"{name:14s} {folder:30s} {when(kept):44s} {kept['command'] if kept else asked}"
        for folder, kept in found.items()
        if kept or folder == here
    ]


def when(kept: Kept | None) -> str:
    return f"{kept['date']}, commit {kept['commit']}, {kept['seconds']:.0f} s" if kept else "never measured"


def digest() -> str:
    """Of all sources that results depend on."""
    found = hashlib.sha256()
    for folder in PROGRAMS:
        for file in sorted((ROOT / folder).rglob("*")):
            is_source = file.suffix in (".py", ".h", ".cc", ".cpp", ".toml") or file.parent.name == "measured"
            if is_source and file.name not in NOT_MEASURED:
                found.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return found.hexdigest()[:16]


def commit() -> str:
    """The commit that the sources are of, with a + if they were changed; empty without git."""
    given = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(given, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


# ---- the page ----


def write_page(page: Path, folder: Path) -> None:
    """Writes what is kept of each table between its marks, where the page has them: of the first machine that
    has it, those of others folded below; and all that is judged side by side."""
    text = page.read_text(encoding="utf-8")
    blocks: dict[str, list[str]] = {}
    judgements: dict[str, dict[str, Any]] = {}
    for at, here in machines(folder).items():
        heading = f"{in_words(here['kind'])}, {machine.name_of(here)}"
        for name in TABLES:
            if (kept := read(folder / at, name)) is None:
                continue
            above = blocks.setdefault(name, [])
            above.append(block(kept, is_folded=bool(above)))
            if kept["judgements"]:
                judgements.setdefault(heading, {})[name] = kept["judgements"]
    if judgements:
        blocks["judged"] = [judged.table(judgements)]
    for name, content in blocks.items():
        text = replaced(text, name, "\n\n".join(content))
    page.write_text(text, encoding="utf-8")


def block(kept: Kept, *, is_folded: bool) -> str:
    """A table as the page has it, with how, when and on what it was measured."""
    commit = f", commit {kept['commit']}" if kept["commit"] else ""
    on = kept["machine"]
    kind, where = in_words(on["kind"]), f"({machine.name_of(on)}, {on['memory'] / 1e9:.0f} GB)"
    how = f"`{kept['command']}` ({kept['date']}{commit}):\n\n{kept['text']}"
    if is_folded:
        return f"<details><summary>{kind} {where}</summary>\n\n{how}\n\n</details>"
    return f"**{kind}** {where}: {how}"


def replaced(text: str, name: str, content: str) -> str:
    """The text with ``content`` between the marks of ``name``; as it was, if it has no such marks."""
    begin, end = f"<!-- table {name} -->\n", f"\n<!-- end of {name} -->"
    before, mark, rest = text.partition(begin)
    _, closing, behind = rest.partition(end)
    return f"{before}{mark}{content}{closing}{behind}" if mark and closing else text


if __name__ == "__main__":
    main()

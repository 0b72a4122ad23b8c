"""From nothing to the first token: seconds and peak memory of a new process, beside reading the weights.

    python -m benchmarks.startup [--model llama-0.5b] [--peers transformers,llama.cpp] [--rounds 3]
                                 [--dtype f32] [--cold] [--parts] [--json] [--out FILE]

Each contestant is a process of its own that loads the checkpoint as its users do, reads a short prompt and
chooses one token; compiled programs, and weights that were made of the checkpoint, are in the cache from a
round that is not counted. *Reading* is a process that only reads the file of the weights, with as many
threads. ``--dtype`` is what we keep the weights as. By default the files are in the system's cache of pages;
with ``--cold`` they are dropped from it before each process. Peak memory is all that was resident at once,
pages of mapped files included, as a multiple of the weights' bytes in the file. ``--parts`` shows instead
what our seconds are spent on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systolic.backends.cache import default_cache_directory
from systolic.runner.kept_weights import ENDING

from . import machine
from .contest import (
    Record,
    absent_lines,
    command_line,
    limits_line,
    markdown,
    parser_for,
    peers_of,
    show,
    spread,
)
from .peers import OURS, Setting, Unavailable
from .subjects import Subject, checkpoint_of, load_subject

PROMPT = [5, 6, 7, 8]
READING = "reading the weights"
_PEAK = "import re; peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024"
# What a user of each writes, with the checkpoint's place as the first argument.
PROGRAMS: Mapping[str, str] = {
    READING: """
import sys, threading, os
path, threads = sys.argv[1], int(sys.argv[2])
size = os.path.getsize(path)
def read(start, end):
    buffer = bytearray(1 << 24)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while start < end:
            start += file.readinto(buffer)
parts = [(size * i // threads, size * (i + 1) // threads) for i in range(threads)]
workers = [threading.Thread(target=read, args=part) for part in parts]
for worker in workers: worker.start()
for worker in workers: worker.join()
token = 0
""",
    OURS: f"""
import sys
import systolic as sy
token = sy.compile(sy.load(sys.argv[1], sys.argv[3])).generate({PROMPT}, max_new_tokens=1, ignore_eos=True)[0]
""",
    "transformers": f"""
import sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(int(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.inference_mode():
    token = int(model(input_ids=torch.tensor([{PROMPT}]), logits_to_keep=1).logits[0, -1].argmax())
""",
    "llama.cpp": f"""
import sys
import llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_threads=int(sys.argv[2]), verbose=False)
token = next(model.generate({PROMPT}, temp=0.0))
""",
}

# The same as ours, step by step: what was done, and when, by the clock of the machine.
STEPS = f"""
import sys, time
times = [("Python", time.time())]
def done(what): times.append((what, time.time()))
import systolic as sy
load = sy.load; done("this package, as far as it is needed to find a model")
model = load(sys.argv[1], sys.argv[2]); done("the model: NumPy, jaxlib, the signature of its graph")
executable = sy.compile(model); done("an executable")
asked = dict(max_new_tokens=1, ignore_eos=True)
executable.prepare({len(PROMPT)}, **asked); done("its programs, as far as they are not loaded yet")
executable.parameters; done("weights, used where they are mapped")
executable.generate({PROMPT}, **asked); done("the prompt, and the token")
print(*(f"{{what}}\\t{{at}}" for what, at in times), sep="\\n")
"""


@dataclass(frozen=True)
class Stored:
    """A subject on disk: what each contestant is given, why others take no part, and how large it is."""

    name: str
    parameters: int
    bytes: int
    files: Mapping[str, Path]
    absent: Mapping[str, str]


def store(model: str, peers: Sequence[str], threads: int) -> Stored:
    """Writes what is not there yet. The subject's arrays are not kept in memory."""
    subject = load_subject(model)
    folder = checkpoint_of(subject)
    files, absent = {READING: folder / "model.safetensors", OURS: folder}, {}
    for peer in peers:
        if peer not in PROGRAMS:
            absent[peer] = "it has no files of its own, nor does it read checkpoints"
            continue
        try:
            files[peer] = _file_of_llama_cpp(subject, threads) if peer == "llama.cpp" else folder
        except Unavailable as reason:
            absent[peer] = str(reason)
    size = sum(array.nbytes for array in subject.weights.values())
    return Stored(subject.name, subject.parameters, size, files, absent)


def _file_of_llama_cpp(subject: Subject, threads: int) -> Path:
    try:
        from .peers.llama_cpp import file_of
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed (pip install '.[benchmarks]')") from None
    return file_of(subject, Setting(threads=threads))


def first_token(name: str, path: Path, threads: int, dtype: str) -> tuple[float, int, int]:
    """Seconds from the start of a process to its first token, the token, and peak bytes."""
    program = PROGRAMS[name] + "print(token, flush=True)\n" + _PEAK + "\nprint(peak, flush=True)"
    # Modules are compiled in the round that is not counted, as they are by whoever installs a package.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, str(path), str(threads), dtype],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        token = process.stdout.readline()
        seconds = time.perf_counter() - started
        peak = process.stdout.readline()
    if not peak:
        raise SystemExit(f"{name} cannot load {path}")
    return seconds, int(token), int(peak)


def parts(model: str, *, rounds: int, threads: int, dtype: str) -> dict[str, list[float]]:
    """Seconds of each step of a start of ours, one number for each round."""
    folder = store(model, (), threads).files[OURS]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found: dict[str, list[float]] = {}
    for round_ in range(rounds + 1):
        before = time.time()
        command = [sys.executable, "-W", "ignore", "-c", STEPS, str(folder), dtype]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        for what, at in (line.split("\t") for line in said.splitlines()):
            if round_:  # the first compiles
                found.setdefault(what, []).append(float(at) - before)
            before = float(at)
    return found


def drop_pages(path: Path) -> None:
    """Drops a file, or the files of a directory, and weights that we keep from the cache of pages."""
    given = list(path.iterdir()) if path.is_dir() else [path]
    for file in [*given, *default_cache_directory().glob(f"*{ENDING}")]:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure(
    model: str, peers: Sequence[str], *, rounds: int, threads: int, is_cold: bool, dtype: str = "f32"
) -> Record:
    """Starts every contestant ``rounds`` times in turn."""
    stored = store(model, peers, threads)
    found: dict[str, list[tuple[float, int, int]]] = {contestant: [] for contestant in stored.files}
    for round_ in range(rounds + 1):
        for contestant, path in stored.files.items():
            if is_cold:
                drop_pages(path)
            result = first_token(contestant, path, threads, dtype)
            if round_:  # the first compiles
                found[contestant].append(result)
    reading = [seconds for seconds, _, _ in found[READING]]
    tokens = {contestant: results[0][1] for contestant, results in found.items() if contestant != READING}
    return Record(
        "startup",
        command_line(),
        stored.name,
        stored.parameters,
        {**machine.describe(), "read_bandwidth": [machine.read_bandwidth()]},
        [row(contestant, results, reading, stored.bytes) for contestant, results in found.items()],
        stored.absent,
        [f"first tokens differ: {tokens}"] if len(set(tokens.values())) > 1 else [],
        {"cold": is_cold, "dtype": dtype, "weight_bytes": stored.bytes},
    )


def row(
    name: str, results: Sequence[tuple[float, int, int]], reading: Sequence[float], size: int
) -> dict[str, Any]:
    """What was measured of one contestant."""
    return {
        "name": name,
        "peer": name,
        "seconds": [seconds for seconds, _, _ in results],
        "times_reading": [s / r for (s, _, _), r in zip(results, reading, strict=True)],
        "peak_of_weights": [peak / size for _, _, peak in results],
    }


def table(record: Record) -> str:
    """The record as Markdown."""
    rows = [
        [found["name"], *(spread(found[key]) for key in ("seconds", "times_reading", "peak_of_weights"))]
        for found in record.rows
    ]
    size = record.settings["weight_bytes"] / 1e6
    state = "files not in memory" if record.settings["cold"] else "files in the cache of pages"
    title = f"{record.model} ({size:,.0f} MB), {state}; {limits_line(record)}\n\n"
    return (
        title
        + markdown(["", "seconds", "times reading", "peak memory ÷ weights"], rows)
        + absent_lines(record.absent)
    )


def main() -> None:
    parser = parser_for(__doc__ or "", model="llama-0.5b", peers="transformers,llama.cpp", rounds=3)
    parser.add_argument("--cold", action="store_true", help="drop the files from the cache of pages first")
    parser.add_argument("--dtype", default="f32", help="what we keep the weights as (default: f32)")
    parser.add_argument("--parts", action="store_true", help="show what our seconds are spent on")
    options = parser.parse_args()
    if options.device != "cpu":
        raise SystemExit("a start is measured against reading files into memory: on a CPU only")
    if options.parts:
        steps = parts(options.model, rounds=options.rounds, threads=options.threads, dtype=options.dtype)
        if options.out is not None:
            options.out.write_text(json.dumps({"seconds": steps}, indent=1) + "\n", encoding="utf-8")
        print(markdown(["", "seconds"], [[what, spread(seconds, 3)] for what, seconds in steps.items()]))
        return
    record = measure(
        options.model,
        peers_of(options),
        rounds=options.rounds,
        threads=options.threads,
        is_cold=options.cold,
        dtype=options.dtype,
    )
    show(record, table(record), options)


if __name__ == "__main__":
    main()

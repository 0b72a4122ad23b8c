"""How much faster than SCALE-Sim: the simulator and the closed form, on the same matmuls, interleaved.

    python -m benchmarks.scalesim_speed --scalesim PYTHON [--rounds 3] [--shapes 64,256,256 …]

PYTHON is an interpreter that can import scalesim (``pip install scalesim==3.0.0`` in an environment of its
own). Each round runs SCALE-Sim once per shape, timed inside its own process without imports, then ours on
operands of the same shape. Cycles must be equal. Prints medians, and ratios with their range over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from systolic.compiler.cost import matmul
from systolic.compiler.cost.array import simulate
from systolic.compiler.cost.targets import Arrays, load_target

ARRAY = (32, 32)
DATAFLOW = "ws"
SHAPES = ("16,512,512", "64,512,512", "256,512,512")

# What SCALE-Sim reads: its own configuration, with ideal bandwidth and room for every operand.
CONFIGURATION = f"""
[general]
run_name = speed
[architecture_presets]
ArrayHeight: {ARRAY[0]}
ArrayWidth: {ARRAY[1]}
IfmapSramSzkB: 8192
FilterSramSzkB: 8192
OfmapSramSzkB: 8192
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Dataflow: {DATAFLOW}
Bandwidth: 100000
MemoryBanks: 1
ReadRequestBuffer: 32
WriteRequestBuffer: 32
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
SparseRep: ellpack_block
OptimizedMapping: false
BlockSize: 8
RandomNumberGeneratorSeed: 40
[run_presets]
InterfaceBandwidth: USER
UseRamulatorTrace: False
"""
LAYOUT = f"Layer, {'-, ' * 16}\nmatmul, {'1, ' * 16}\n"
CHILD = """
import contextlib, io, sys, time
from scalesim.scale_sim import scalesim
folder = sys.argv[1]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    run = scalesim(save_disk_space=True, verbose=False, config=folder + "/array.cfg",
                   topology=folder + "/matmul.csv", layout=folder + "/layout.csv", input_type_gemm=True)
    start = time.perf_counter()
    run.run_scale(top_path=folder)
    seconds = time.perf_counter() - start
cycles = run.runner.single_layer_sim_object_list[0].get_compute_report_items()
print(seconds, cycles[1] - cycles[2])
"""


@dataclass(frozen=True)
class Timed:
    """Seconds of one matmul, and the cycles that were counted."""

    seconds: float
    cycles: int


def time_scalesim(python: str, shape: tuple[int, int, int]) -> Timed:
    """One run of SCALE-Sim on lhs [m, k] · rhs [k, n]."""
    m, k, n = shape
    with tempfile.TemporaryDirectory() as folder:
        texts = {
            "array.cfg": CONFIGURATION,
            "layout.csv": LAYOUT,
            "matmul.csv": f"Layer, M, N, K,\nmatmul, {m}, {n}, {k},\n",
        }
        for name, text in texts.items():
            (Path(folder) / name).write_text(text)
        done = subprocess.run([python, "-c", CHILD, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"SCALE-Sim did not run with {python}: {done.stderr.strip().splitlines()[-1]}")
    seconds, cycles = done.stdout.split()[-2:]
    return Timed(float(seconds), int(float(cycles)) + 1)  # it prints the number of the last cycle


def time_ours(call: Callable[[], int], least: float = 0.02) -> Timed:
    """The mean of enough calls to last ``least`` seconds."""
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < least or not calls:
        cycles = call()
        calls += 1
    return Timed((time.perf_counter() - start) / calls, cycles)


def measure(python: str, shape: tuple[int, int, int]) -> dict[str, Timed]:
    """One round: SCALE-Sim, the simulator and the closed form."""
    m, k, n = shape
    target = load_target("scalesim")
    assert isinstance(target.arrays, Arrays)
    arrays = replace(target.arrays, rows=ARRAY[0], columns=ARRAY[1], dataflow=DATAFLOW)
    lhs, rhs = np.ones((m, k), np.int8), np.ones((k, n), np.int8)
    return {
        "SCALE-Sim": time_scalesim(python, shape),
        "simulator": time_ours(lambda: int(simulate(lhs, rhs, arrays).cycles)),
        "model": time_ours(
            lambda: matmul(*shape, "int8", target, array=ARRAY, dataflow=DATAFLOW).cycles or 0
        ),
    }


def main() -> None:
    """Prints a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scalesim", default=sys.executable, help="an interpreter that has scalesim")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="M,K,N")
    arguments = parser.parse_args()
    print(f"{DATAFLOW}, {ARRAY[0]} × {ARRAY[1]}; seconds are medians, ratios to SCALE-Sim with their range")
    for text in arguments.shapes:
        m, k, n = map(int, text.split(","))
        rounds = [measure(arguments.scalesim, (m, k, n)) for _ in range(arguments.rounds)]
        cycles = {timed.cycles for one in rounds for timed in one.values()}
        if len(cycles) > 1:
            sys.exit(f"{text}: cycles differ: {sorted(cycles)}")
        parts = [f"SCALE-Sim {statistics.median(one['SCALE-Sim'].seconds for one in rounds):8.3f} s"]
        for name in ("simulator", "model"):
            ratios = sorted(one["SCALE-Sim"].seconds / one[name].seconds for one in rounds)
            middle = statistics.median(one[name].seconds for one in rounds)
            spread = f"({ratios[0]:,.0f} to {ratios[-1]:,.0f})"
            parts.append(f"{name} {1e3 * middle:8.3f} ms, {statistics.median(ratios):,.0f} times {spread}")
        print(f"{text:16} {cycles.pop():>10,} cycles   {'   '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()

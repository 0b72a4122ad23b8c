"""Predicted against measured decode steps on this machine's CPU, in one interleaved run.

    python -m benchmarks.predicted_decode [--models llama-0.1b gpt2] [--contexts 64 512] [--rounds 3]

Each round calibrates the target ``cpu`` anew (``systolic targets --calibrate``) and times greedy steps behind
a prompt, f32, one row, on the XLA backend. The prediction is that of ``systolic cost --phase decode`` at the
middle of the timed steps. Prints medians, and measured by predicted time with its range.
"""

from __future__ import annotations

import argparse
import statistics
import time

from systolic.compiler.cost.calibrate import measured_cpu
from systolic.compiler.cost.prediction import plan_program, predict
from systolic.compiler.pipeline import run_passes

from .peers import Setting
from .peers.ours import Ours, prepare
from .subjects import Subject, load_subject

STEPS = 32


def predicted_seconds(subject: Subject, context: int) -> float:
    """One step behind ``context`` positions, on the CPU as it is now."""
    graph = run_passes(subject.model.graph)[-1].graph
    return predict(plan_program(graph, measured_cpu(), context=context, dtype="f32"), 1).seconds


def measured_seconds(contestant: Ours, subject: Subject, context: int) -> float:
    """The mean of ``STEPS`` steps around ``context`` positions."""
    contestant.prefill(subject.prompts(1, context - STEPS // 2))
    contestant.decode(1)
    start = time.perf_counter()
    contestant.decode(STEPS)
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    """Prints a line for each model and context."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["llama-0.1b", "gpt2"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.models:
        subject = load_subject(name)
        contestant = prepare(subject, Setting("f32", 1, 1024))
        for context in arguments.contexts:
            rounds = [
                (predicted_seconds(subject, context), measured_seconds(contestant, subject, context))
                for _ in range(arguments.rounds)
            ]
            ratios = sorted(measured / predicted for predicted, measured in rounds)
            predicted, measured = (1e3 * statistics.median(column) for column in zip(*rounds, strict=True))
            print(
                f"{name:12} context {context:5}: predicted {predicted:7.2f} ms, measured {measured:7.2f} ms, "
                f"{statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()

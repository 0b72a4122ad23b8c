"""Whole programs on a TPU, with kernels of our own and without: a decode step, or a chunk of a prompt.

    python -m systolic.benchmarks.tpu_programs CONFIG --phase decode     # needs libtpu, no TPU

Matrix products count as they are measured by themselves (scheduled cycles and main memory, both kernels in
one way); everything else by the compiler's estimate of the program that it is in. `systolic compile --target`
uses the kernels of the line that takes the least.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.tpu import Refusal, TpuTarget, compile_each, parse_target
from systolic.compiler.pipeline import run_passes
from systolic.compiler.program import Program
from systolic.models.load import load
from systolic.runner.options import Options
from systolic.runner.product_kernels import ProductKernel, chosen_kernels, compare_kernels, kernel_choices
from systolic.runner.program_source import DerivedPrograms
from systolic.runner.tpu_report import TpuReport, report_on


def derived_program(config: Path, chunk: int, capacity: int) -> Program:
    """The program that advances one row by ``chunk`` positions, with weights as bf16."""
    graph = run_passes(load(config, "bf16").graph)[-1].graph
    return DerivedPrograms(graph, Options(capacity=capacity, chunk=chunk)).chunk(chunk)


def compiled_reports(
    program: Program, products: Sequence[ProductKernel], machine: TpuTarget
) -> list[TpuReport | Refusal]:
    """The program with every choice of kernels; first with none of ours."""
    choices = kernel_choices(products)
    texts = {
        str(i): emit_stablehlo(program, chosen_kernels(chosen), states_row_major=True)
        for i, chosen in enumerate(choices)
    }
    compiled = compile_each(texts, machine).values()
    return [
        each if isinstance(each, Refusal) else report_on(program, each, chosen)
        for chosen, each in zip(choices, compiled, strict=True)
    ]


def product_line(each: ProductKernel) -> str:
    """A product with both kernels, what handing over might cost, and our tiles."""
    compared = each.compared
    sides = (compared.kernel, compared.emitter)
    ours, compilers = ("refused" if isinstance(s, Refusal) else f"{s.cycles:,.0f}" for s in sides)
    return (
        f"{compared.product.name:34} × {len(each.nodes):3}  ours {ours:>10} + {each.handover_cycles:6,.0f}  "
        f"compiler's {compilers:>10}  {compared.choice.tiling}"
    )


def main() -> None:
    """Prints the products, and a line for each choice of kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="a config.json")
    parser.add_argument("--target", default="tpu-v5e")
    parser.add_argument("--phase", choices=("decode", "prefill"), default="decode")
    parser.add_argument("--chunk", type=int, default=128, help="positions of a chunk of prefill")
    parser.add_argument("--capacity", type=int, default=1024)
    arguments = parser.parse_args()
    machine = parse_target(arguments.target)
    chunk = 1 if arguments.phase == "decode" else arguments.chunk
    program = derived_program(arguments.config, chunk, arguments.capacity)
    products = compare_kernels([program], machine)[program.name]
    print("\n".join(map(product_line, products)), flush=True)
    without = 0.0
    for report in compiled_reports(program, products, machine):
        if isinstance(report, Refusal):
            print(f"refused: {report.reason}")
            continue
        together, (rest, count) = report.measured_cycles, report.rest
        without = without or together
        ours = sum(len(each.nodes) for each in report.products if each.is_ours)
        print(
            f"{ours:4} kernels of ours  products {together - rest:12,.0f}  rest {rest:12,} in {count:,}  "
            f"together {together:12,.0f}  {together / without:.3f}"
        )


if __name__ == "__main__":
    main()

"""What the TPU compiler made of a program: memory, operations with cycles and tiles, copies of states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..backends.stablehlo import emit_stablehlo
from ..backends.tpu import Refusal, RefusedError, TpuProgram, TpuTarget, compile_each, libtpu_version
from ..backends.tpu_hlo import Module, Operation, parse_module
from ..compiler.cost.comparison import Estimate
from ..compiler.program import STATE_PREFIX, Program
from ..ir.errors import SystolicError
from .product_kernels import ProductKernel, chosen_kernels, compare_kernels, kernel_choices

# States that a step adds to, and must not move; a tail or a carry is new as a whole in every step.
_KEPT = ("append", "ring")
_COPYING = frozenset(("copy", "transpose", "convert", "copy-start"))
# What hands on the same bytes.
_HANDING_ON = frozenset(("bitcast", "reshape", "get-tuple-element", "copy-done"))
_UNTIMED = frozenset(("parameter", "constant", "tuple", *_HANDING_ON))


@dataclass(frozen=True, slots=True)
class StateUse:
    """A state that a program updates: whether its result takes its memory, the layout (fastest axis first,
    tiles) in which it comes in, and the operations that copy it as a whole."""

    name: str
    kind: str
    is_aliased: bool
    layout: str
    copies: tuple[str, ...]

    @property
    def is_in_place(self) -> bool:
        return self.is_aliased and not self.copies


@dataclass(frozen=True, slots=True)
class LayoutCopy:
    """An operation that only moves: ``before`` and ``after`` are layouts, ``bytes`` those of the result."""

    name: str
    node: str
    shape: str
    before: str
    after: str
    bytes: int
    cycles: int


@dataclass(frozen=True)
class TpuReport:
    """One program as the TPU compiler has it. ``cycles`` sums all estimates, loops as often as they run;
    ``unestimated`` counts operations without one (asynchronous moves, scatters, scalars, our kernels).
    ``products``: matrix products for which a kernel of ours was measured beside the compiler's."""

    program: str
    rows: int
    chunk: int
    capacity: int
    compiled: TpuProgram
    module: Module
    states: tuple[StateUse, ...]
    layout_copies: tuple[LayoutCopy, ...]
    products: tuple[ProductKernel, ...] = ()

    @property
    def cycles(self) -> int:
        return sum((operation.cycles or 0) * times for operation, times in self.module.scheduled)

    @property
    def measured_cycles(self) -> float:
        """Products as they were measured by themselves, and everything without one by the estimate."""
        return sum(product.cycles for product in self.products) + self.rest[0]

    @property
    def rest(self) -> tuple[int, int]:
        """Estimated cycles of the operations without a product that was measured, and their number."""
        # XLA cuts what is behind an @, as in ``head.logits@last``.
        names = {node.partition("@")[0] for product in self.products for node in product.nodes}
        found = [
            (operation.cycles * times, times)
            for operation, times in self.module.scheduled
            if operation.cycles is not None and names.isdisjoint(self.nodes(operation))
        ]
        return sum(cycles for cycles, _ in found), sum(times for _, times in found)

    @property
    def unestimated(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for operation, times in self.module.scheduled:
            if operation.cycles is None and operation.opcode not in _UNTIMED:
                found[operation.opcode] = found.get(operation.opcode, 0) + times
        return found

    @property
    def optimal_seconds(self) -> float | None:
        """XLA's roofline. It counts −1 second for every custom call that it has no figure for, which is
        taken out here; None if what is left is no time."""
        seconds = self.compiled.optimal_seconds
        if seconds is None or seconds >= 0:
            return seconds
        calls = sum(operation.opcode == "custom-call" for operation, _ in self.module.scheduled)
        return seconds + calls if 0 < seconds + calls < 1 else None

    def estimates(self) -> tuple[Estimate, ...]:
        """The compiler's cycles by operation, with the names of our nodes."""
        return tuple(
            Estimate(operation.name, operation.node, self.nodes(operation), operation.cycles * times)
            for operation, times in self.module.scheduled
            if operation.cycles is not None
        )

    def nodes(self, operation: Operation) -> tuple[str, ...]:
        """Our nodes that an operation computes, without repetition."""
        parts = (operation, *self.module.inside(operation))
        return tuple(dict.fromkeys(part.node for part in parts if part.node))

    def to_json(self) -> dict[str, Any]:
        figures = self.compiled
        return {
            "program": self.program,
            "rows": self.rows,
            "chunk": self.chunk,
            "capacity": self.capacity,
            "compile_seconds": figures.compile_seconds,
            "memory": dict(figures.memory),
            "estimated_cycles": self.cycles,
            "operations_without_estimate": self.unestimated,
            "optimal_seconds": self.optimal_seconds,
            "optimal_seconds_as_given": figures.optimal_seconds,
            "flops": figures.flops,
            "bytes_accessed": figures.bytes_accessed,
            "states": [asdict(state) | {"is_in_place": state.is_in_place} for state in self.states],
            "layout_copies": [asdict(copy) for copy in self.layout_copies],
            "products": [product.to_json() for product in self.products],
            "operations": [
                {
                    "name": operation.name,
                    "opcode": operation.opcode,
                    "node": operation.node,
                    "nodes": list(self.nodes(operation)),
                    "estimated_cycles": operation.cycles,
                    "times": times,
                    "windows": operation.windows,
                    "emitter": operation.emitter,
                }
                for operation, times in self.module.scheduled
                if operation.cycles is not None
            ],
        }


def compile_reports(
    programs: Iterable[Program], target: TpuTarget, *, own_kernels: bool = False
) -> tuple[dict[str, str], list[TpuReport]]:
    """The StableHLO of each program as it was compiled for the target, by name, and the reports.

    With ``own_kernels``, products are computed by kernels of our own where the program takes less with them.
    Raises ``RefusedError`` if the compiler refuses a program without any.
    """
    listed = list(programs)
    kernels = compare_kernels(listed, target) if own_kernels else {}
    choices = {program.name: kernel_choices(kernels.get(program.name, ())) for program in listed}
    texts = {
        f"{program.name}.{i}": _text(program, products)
        for program in listed
        for i, products in enumerate(choices[program.name])
    }
    compiled = compile_each(texts, target)
    reports = []
    for program in listed:
        tried = [compiled[f"{program.name}.{i}"] for i in range(len(choices[program.name]))]
        reports.append(_best_report(program, list(zip(choices[program.name], tried, strict=True))))
    return {r.program: _text(p, r.products) for p, r in zip(listed, reports, strict=True)}, reports


def _text(program: Program, products: Sequence[ProductKernel]) -> str:
    return emit_stablehlo(program, chosen_kernels(products), states_row_major=True)


def _best_report(
    program: Program, compiled: Sequence[tuple[tuple[ProductKernel, ...], TpuProgram | Refusal]]
) -> TpuReport:
    """The report on the program with the kernels with which it takes the least; products say where one was
    refused."""
    (_, without), *_ = compiled
    if isinstance(without, Refusal):
        raise RefusedError(without.reason)
    reports = [report_on(program, each, p) for p, each in compiled if not isinstance(each, Refusal)]
    best = min(reports, key=lambda report: report.measured_cycles)
    for products, each in compiled:
        if isinstance(each, Refusal):
            left = (
                own.refused(each.reason) if own.is_ours and not used.is_ours else used
                for own, used in zip(products, best.products, strict=True)
            )
            best = replace(best, products=tuple(left))
    return best


def report_on(program: Program, compiled: TpuProgram, products: Sequence[ProductKernel] = ()) -> TpuReport:
    """Reads the optimised HLO of a program. ``products``: those of it that were measured."""
    module = parse_module(compiled.text)
    return TpuReport(
        program.name,
        program.rows,
        program.chunk,
        program.capacity,
        compiled,
        module,
        tuple(_states(program, module)),
        tuple(_layout_copies(module)),
        tuple(products),
    )


# ---- states ----


def _states(program: Program, module: Module) -> Iterable[StateUse]:
    arguments = [node.name for node in (*program.graph.parameters, *program.graph.inputs)]
    outputs = list(program.graph.outputs)
    kinds = {STATE_PREFIX + state.name: state.kind for state in program.states}
    parameters = [op for op in module.computations[module.entry] if op.opcode == "parameter"]
    by_node = {parameter.node: parameter for parameter in parameters}
    for name in program.donated:
        place = arguments.index(name)
        parameter = by_node.get(name)
        copies = _copies_of(module, parameter) if parameter and kinds[name] in _KEPT else ()
        yield StateUse(
            name.removeprefix(STATE_PREFIX),
            kinds[name],
            module.aliases.get(outputs.index(name)) == place,
            parameter.arrays[0].order if parameter else "",
            tuple(copies),
        )


def _copies_of(module: Module, parameter: Operation) -> list[str]:
    """The operations that write a whole copy of a state into HBM, or into another layout or type, on its way
    from the argument to the result. What has as many elements as the state and is made from it holds it;
    bringing it on chip to be read there is no copy, writing it back from there is."""
    size = parameter.arrays[0].elements
    holders, copies = {parameter.name}, []
    for operation in module.computations[module.entry]:
        if holders.isdisjoint(operation.operands):
            continue
        if operation.opcode == "tuple" or not any(a.elements == size for a in operation.arrays):
            continue
        holders.add(operation.name)
        kind = module.root(operation).opcode
        made, source = operation.arrays[0], operation.arrays[min(1, len(operation.arrays) - 1)]
        is_read = operation.opcode == "copy-start" and made.is_on_chip and made.order == source.order
        if kind in _COPYING and not is_read:
            copies.append(operation.name)
    return copies


def _layout_copies(module: Module) -> Iterable[LayoutCopy]:
    """The copies and transposes that the compiler runs by themselves, scalars left out."""
    made = {operation.name: operation for operation, _ in module.scheduled}
    for operation, times in module.scheduled:
        kind, array = module.root(operation).opcode, operation.arrays[0] if operation.arrays else None
        if kind not in ("copy", "transpose") or array is None or array.elements == 1:
            continue
        source = next((made[name] for name in operation.operands if name in made), None)
        before = source.arrays[0].order if source and source.arrays else ""
        shape = f"{array.dtype}[{','.join(map(str, array.shape))}]"
        cycles = (operation.cycles or 0) * times
        yield LayoutCopy(operation.name, operation.node, shape, before, array.order, array.bytes, cycles)


# ---- the audit ----


def findings(reports: Iterable[TpuReport], temporary_bytes: int) -> list[str]:
    """What speaks against using the programs: states that are copied, and too much temporary memory."""
    found = []
    for report in reports:
        moved = [state for state in report.states if not state.is_in_place]
        if moved:
            names = ", ".join(state.name for state in moved[:3]) + (", …" if len(moved) > 3 else "")
            found.append(f"{report.program} copies {len(moved)} of {len(report.states)} states ({names})")
        used = report.compiled.memory["temp_bytes"]
        if used > temporary_bytes:
            limit = f"{temporary_bytes / 1e6:,.0f} MB"
            found.append(f"{report.program} needs {used / 1e6:,.0f} MB of temporaries, more than {limit}")
    return found


def audit(reports: Iterable[TpuReport], temporary_bytes: int) -> None:
    """Raises ``SystolicError`` if there are findings."""
    found = findings(reports, temporary_bytes)
    if found:
        raise SystolicError(f"{'; '.join(found)}; --lenient compiles it all the same")


def report_json(reports: Iterable[TpuReport], target: TpuTarget) -> Mapping[str, Any]:
    return {
        "target": target.name,
        "topology": target.topology,
        "chip": target.chip,
        "libtpu": libtpu_version(),
        "programs": [report.to_json() for report in reports],
    }

"""Emits a program as one readable NumPy module: imports, helpers, constants, and a function ``run``.

Each node is one line that carries the node's own name and ends in its type; a comment marks where the scope
changes. Numbers keep their types, products are matrix products, and a state that nobody else reads is
written in place. Which expression an op becomes stands in ``numpy_ops``.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..compiler.cost.program_schedule import AttentionNest, MatmulNest, Nest, schedule_program
from ..compiler.cost.targets import Target
from ..compiler.program import STATE_PREFIX, Program
from ..ir.graph import Graph, Node
from ..ir.ops import OPS
from ..ir.types import show_type
from .numpy_attention import NAMES as ATTENTION_NAMES
from .numpy_attention import attention_lines
from .numpy_literals import array_source, is_number, number_source, quoted
from .numpy_ops import EXPRESSIONS, Emission
from .numpy_storage import Ownership, outputs_to_copy, rewritten_carries
from .numpy_tiles import NAMES as MATMUL_NAMES
from .numpy_tiles import counter, is_one_tile, matmul_comment, matmul_lines

_RESERVED = frozenset(
    {"Array", "bfloat16", "inputs", "math", "np", "parameters", "results", "run", "states"}
    | {"repeat", "write_rows_in_place", *(op.numpy.__name__ for op in OPS.values())}
    | {*keyword.kwlist, *dir(builtins)}
)


def emit_numpy(program: Program, target: Target | None = None) -> str:
    """The module's source; it defines ``run(parameters, inputs, states) -> (results, states)``.

    All are dictionaries of arrays by name, states without ``state.``. States given to ``run`` are used up.
    For a ``target``, contractions are loops over tiles, as they would be scheduled there.
    """
    if target is None:
        return emit_scheduled(program, ())
    return emit_scheduled(program, schedule_program(program, target), f", tiled for {target.name}")


def emit_scheduled(program: Program, nests: Sequence[Nest], tiled: str = "") -> str:
    """The same, with these nests of loops; ``tiled`` is told at the top."""
    graph, module = program.graph, Module()
    module.take(nests)
    states = {node.name: node for node in graph.inputs if node.name.startswith(STATE_PREFIX)}
    updated = {name: states.get(name) for name in graph.outputs if name.startswith(STATE_PREFIX)}
    owned = {states[name] for name in program.donated}
    lines = _lines(module, graph, owned)
    copies = outputs_to_copy(graph.outputs, updated)
    values = {
        name: module.operand(node) + (".copy()" if name in copies else "")
        for name, node in graph.outputs.items()
    }
    state_values = {name.removeprefix(STATE_PREFIX): values.pop(name) for name in updated}
    lines += [*_dictionary("results", values), *_dictionary("states", state_values), "return results, states"]
    body = "\n".join(f"    {line}" if line else "" for line in lines)
    run = f'def run(parameters, inputs, states):\n    """See the top of this module."""\n{body}\n'
    return _header(program, tiled) + module.preamble(run) + "\n\n" + run


def _loop_names(nests: Sequence[Nest]) -> set[str]:
    """The variables that loops use beside the names of nodes."""
    layouts = [nest.scores_layout if isinstance(nest, AttentionNest) else nest.layout for nest in nests]
    counters = {counter(letter) for layout in layouts for letter in layout.batch}
    return counters | MATMUL_NAMES | ATTENTION_NAMES if nests else set()


def _header(program: Program, tiled: str) -> str:
    """What the module is, and what it takes and gives."""
    graph = program.graph
    kinds = {STATE_PREFIX + state.name: f" ({state.kind})" for state in program.states}
    listed = {"inputs": [], "states": [], "results": []}  # type: dict[str, list[str]]
    for node in graph.inputs:
        section = "states" if node.name.startswith(STATE_PREFIX) else "inputs"
        name = node.name.removeprefix(STATE_PREFIX)
        listed[section].append(f"{name}  {show_type(node.type)}{kinds.get(node.name, '')}")
    listed["results"] = [f"{name}  {show_type(graph.outputs[name].type)}" for name in program.results]
    text = (
        f"{program.name}: {program.rows} rows, {program.chunk} positions each, capacity {program.capacity}.\n"
        f"Emitted by systolic{tiled}.\n\n"
        "run(parameters, inputs, states) takes dictionaries of arrays by name, returns (results, states).\n"
        "The states that it is given are used up: they may be written in place.\n"
    )
    for title, lines in listed.items():
        text += "".join([f"\n{title}:\n", *(f"    {line}\n" for line in lines)]) if lines else ""
    return '"""' + text.replace("\\", "\\\\") + '"""\n\n'


def _dictionary(name: str, values: Mapping[str, str]) -> list[str]:
    if not values:
        return [f"{name} = {{}}"]
    return [f"{name} = {{", *(f"    {quoted(key)}: {value}," for key, value in values.items()), "}"]


def _lines(module: Module, graph: Graph, owned: set[Node]) -> list[str]:
    """One line for each node, or loops for a nest, without indentation. ``owned`` inputs may be written in
    place. What reads nothing may stand in several bodies of loops, and has a line in each."""
    ownership = Ownership.of(graph, owned)
    module.emission.in_place.update(filter(ownership.overwrites, graph.nodes))
    borrowed = {id(node) for node in (*graph.inputs, *graph.parameters)}
    read = {source for node in graph.nodes for source in node.sources} | set(graph.outputs.values())
    lines: list[str] = []
    scope = ""
    for node in _parameters_late(graph, module.looped):
        is_given = id(node) in borrowed and (node in module.names or node not in read)
        if is_given or is_number(node):
            continue
        if node.op.name == "constant":
            module.constant(node)
            continue
        if node.op.name == "loop":
            module.repeat(node)
        if node in module.looped and node is not module.looped[node].place:
            continue
        if node.scope != scope and id(node) not in borrowed:
            scope = node.scope
            lines += ["", f"# {scope or 'outside of scopes'}"]
        if node in module.looped:
            lines += _loops(module, module.looped[node])
            continue
        lines += matmul_comment(module.whole[node]) if node in module.whole else []
        lines.append(f"{module.name(node)} = {_expression(module, node, ownership)}  # {_remark(node)}")
    return lines


def _loops(module: Module, nest: Nest) -> list[str]:
    if isinstance(nest, AttentionNest):
        return attention_lines(module, nest)
    return matmul_lines(module, nest)


def _parameters_late(graph: Graph, looped: Mapping[Node, Nest]) -> list[Node]:
    """The nodes in order, with each parameter just before the first node, or loops, that read it."""
    order: dict[Node, None] = {}
    for node in graph.nodes:
        if node.op.name != "parameter":
            readers = looped[node].covered if node in looped else (node,)
            sources = (source for reader in readers for source in reader.sources)
            order.update(dict.fromkeys(source for source in sources if source.op.name == "parameter"))
            order[node] = None
    order.update(dict.fromkeys(graph.parameters))
    return list(order)


def _remark(node: Node) -> str:
    shown = show_type(node.type)
    return f"{shown}  {node.params['subscripts']}" if node.op.name == "contraction" else shown


def _expression(module: Module, node: Node, ownership: Ownership) -> str:
    operands = [module.operand(source, node) for source in node.sources]
    if node.op.name == "loop":
        for at in rewritten_carries(node.params["body"], node.params["carries"]):
            if not ownership.ends_in(node.sources[at]):
                operands[at] += ".copy()"
    return EXPRESSIONS[node.op.name](module.emission, node, *operands)


@dataclass
class Module:
    """What has been emitted outside of ``run``, and the names in use."""

    emission: Emission = field(default_factory=Emission)
    names: dict[Node, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=lambda: set(_RESERVED))
    counts: dict[str, int] = field(default_factory=dict)
    constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    constant_lines: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    looped: dict[Node, Nest] = field(default_factory=dict)
    whole: dict[Node, MatmulNest] = field(default_factory=dict)

    def take(self, nests: Sequence[Nest]) -> None:
        """Emits these nests as loops: ``looped`` has all of their nodes, ``whole`` products of one tile."""
        self.taken |= _loop_names(nests)
        for nest in nests:
            if isinstance(nest, MatmulNest) and is_one_tile(nest):
                self.whole[nest.products[0]] = nest
            else:
                self.looped |= dict.fromkeys(nest.covered, nest)

    def unique(self, name: str) -> str:
        """A Python identifier that looks like ``name`` and is not in use."""
        base = re.sub(r"\W", "_", name)
        base = base if base.isidentifier() else f"_{base}"
        chosen = base
        while chosen in self.taken:
            self.counts[base] = self.counts.get(base, 0) + 1
            chosen = f"{base}_{self.counts[base]}"
        self.taken.add(chosen)
        return chosen

    def name(self, node: Node) -> str:
        """The variable that holds the node's value."""
        if node not in self.names:
            self.names[node] = self.unique(node.name or node.op.name)
        return self.names[node]

    def operand(self, node: Node, user: Node | None = None) -> str:
        """The node as an operand: its variable, or a number written out."""
        return number_source(node, user) if is_number(node) else self.names[node]

    def constant(self, node: Node) -> None:
        """Writes an array before ``run``; equal arrays are written once."""
        array = node.params["value"]
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.unique(node.name or "constant")
            line = f"{self.constants[key]} = {array_source(array)}  # {node.type}"
            self.constant_lines.append(line)
        self.names[node] = self.constants[key]

    def repeat(self, loop: Node) -> None:
        """Writes the body of a loop as a function before ``run``."""
        body, carries = loop.params["body"], loop.params["carries"]
        name = self.emission.repeats[loop] = self.unique(f"{loop.name or 'loop'}_step")
        arguments = ", ".join(self.name(node) for node in body.inputs)
        rewritten = rewritten_carries(body, carries)
        lines = _lines(self, body, {body.inputs[at] for at in rewritten})
        outputs = list(body.outputs)
        copies = outputs_to_copy(body.outputs, {outputs[at]: body.inputs[at] for at in rewritten})
        values = [
            self.operand(node) + (".copy()" if output in copies else "")
            for output, node in body.outputs.items()
        ]
        lines.append(f"return [{', '.join(values)}]")
        text = "\n".join(f"    {line}" if line else "" for line in lines)
        self.functions.append(f"def {name}({arguments}):\n{text}\n")

    def preamble(self, run: str) -> str:
        """Imports, helpers, constants and the bodies of loops."""
        helpers = "\n\n\n".join(self.emission.helpers.values())
        rest = "\n".join([helpers, *self.constant_lines, *self.functions, run])
        imports = ["from __future__ import annotations\n"] if "Array" in helpers else []
        imports += ["import math\n"] if "math." in helpers else []
        imports += ["import numpy as np"]
        imports += ["from ml_dtypes import bfloat16"] if re.search(r"\bbfloat16\b", rest) else []
        sections = ["\n".join(imports)]
        sections += ["Array = np.ndarray"] if "Array" in helpers else []
        sections += ["\n".join(self.constant_lines)] if self.constant_lines else []
        parts = ["\n\n".join(sections), *self.emission.helpers.values(), *self.functions]
        return "\n\n\n".join(part.rstrip() for part in parts) + "\n"

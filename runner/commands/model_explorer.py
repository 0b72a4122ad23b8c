"""What Google's Model Explorer is given of a model: its graphs, and files of costs and states."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...compiler.measures import state_bytes, value_bytes, work_of
from ...compiler.program import STATE_PREFIX, State
from ...ir.dumps.model_explorer import node_values, to_model_explorer
from ...ir.errors import SystolicError
from ...ir.graph import Graph, Node
from ...ir.op import Work
from ..files import write_file
from ..stages import Stages
from .page import derived_programs, states_of

Values = Callable[[str, Node], int]


def write_model_explorer(stages: Stages, stage: str, out: Path, *, force: bool = False) -> tuple[Path, ...]:
    """Writes the graphs to ``out``, and beside it a file for each measure; yields all files, graphs first.

    For ``gpt2.json`` the others are ``gpt2.multiply-adds.json`` and so on. No file is written if
    one of them exists, unless ``force``.
    """
    contents = model_explorer_files(stages, stage)
    files = {
        out.with_suffix(f".{part}{out.suffix}" if part else out.suffix): contents[part] for part in contents
    }
    for file in files:
        if file.exists() and not force:
            raise SystolicError(f"{file} exists already; --force overwrites it")
    for file, content in files.items():
        write_file(file, f"{json.dumps(content)}\n", force=force)
    return tuple(files)


def model_explorer_files(stages: Stages, stage: str) -> dict[str, Any]:
    """The content of each file, by what is added to its name; "" are the graphs, ``stage`` first."""
    programs = derived_programs(stages)
    graphs = {stage: stages.graph(stage)}
    graphs |= {name: program.graph for name, program in programs.items() if name != stage}
    label = stages.passes[stages.last_pass].graph.name
    return {
        "": to_model_explorer(label, graphs),
        **{
            name.replace(" ", "-"): node_values(name, graphs, value_of)
            for name, value_of in _measures(graphs, states_of(programs), stages.options.capacity).items()
        },
    }


def _measures(graphs: Mapping[str, Graph], states: tuple[State, ...], capacity: int) -> dict[str, Values]:
    """What nodes are coloured by, each for one value at the last position of ``capacity``."""
    kept = {name: state_bytes(graph, states) for name, graph in graphs.items()}

    def multiply_adds(graph: str, node: Node) -> int:
        work = work_of(node, capacity)
        return work.multiply_adds if work else 0

    def moved(graph: str, node: Node) -> int:
        return bytes_moved(node, capacity)

    def state(graph: str, node: Node) -> int:
        return kept[graph].get(node.name.removeprefix(STATE_PREFIX), 0) if _holds(graph, node) else 0

    def _holds(graph: str, node: Node) -> bool:
        """A state is shown once: at the input of a program, at the stream of the graph per token."""
        is_program = any(name.startswith(STATE_PREFIX) for name in graphs[graph].by_name)
        return not is_program or node.name.startswith(STATE_PREFIX)

    return {"multiply-adds": multiply_adds, "bytes read and written": moved, "bytes of state": state}


def bytes_moved(node: Node, capacity: int) -> int:
    """Bytes of the operands and of the value; of a table, only the rows that are taken. A view moves none."""
    if work_of(node, capacity) in (None, Work()):
        return 0
    own = value_bytes(node.type, capacity)
    read = [value_bytes(source.type, capacity) for source in node.sources]
    if node.op.name in ("take", "read_rows"):
        read = [min(size, own) for size in read]
    return sum(read) + own

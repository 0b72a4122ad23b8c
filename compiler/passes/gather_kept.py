"""Rows of a table are taken as they are kept, and only then made wider.

    %a = cast(%table, dtype="f32")          →     (gone, if nothing else reads it)
    %b = take(%a, %token)                         %c = take(%table, %token)
                                                  %b = cast(%c, dtype="f32")

Must not fire on a table that is computed: it has the wider type already. It is for compilers that would make
the whole table wider: on TPU a gather reads its operand from memory, so XLA writes the f32 table there first;
on CPU it does that in front of a decode loop, at each call.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.graph import Graph, Node, copy_node, make_node, rebuild


def gather_kept(graph: Graph) -> Graph:
    """Exchanges each ``take`` with the cast of the parameter that it reads."""

    def visit(node: Node, sources: tuple[Node, ...]) -> Node:
        current = copy_node(node, sources)
        table = sources[0] if node.op.name == "take" else None
        if table is None or table.op.name != "cast" or table.sources[0].op.name != "parameter":
            return current
        made = make_node(node.op, (table.sources[0], *sources[1:]), node.params)
        taken = replace(made, name=node.name, scope=node.scope, location=node.location)
        wider = make_node(table.op, (taken,), table.params)
        name = f"{node.name}.{node.tensor.dtype}"
        return replace(wider, name=name, scope=node.scope, location=node.location)

    return rebuild(graph, visit)

"""In which form each product of a program is written, by the table of this machine.

Products with matrices that read the same vectors are decided together: the queries, keys and values of a
layer, or the gate and the up projection of its MLP, can be one call of a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...ir.graph import Graph, Node
from ..native import Kernels
from ..native.calls import Selected
from ..native.projections import project
from .forms import available_forms, select_form
from .products import Product, find_product
from .table import FormTable, Setting


@dataclass(frozen=True)
class Choice:
    """Products that are computed together, as one product, and the form that was chosen for them."""

    products: tuple[Product, ...]
    setting: Setting
    form: str


def choose_forms(
    nodes: Iterable[Node], has_kernels: bool, table: FormTable | None, near: frozenset[str]
) -> list[Choice]:
    """A form for each product among ``nodes``. ``near`` are names of weights that stay in the caches from
    one use to the next. Without a table, kernels compute all where there are any."""
    together: dict[object, list[Product]] = {}
    for product in filter(None, map(find_product, nodes)):
        together.setdefault(product.kind if product.is_ready else product, []).append(product)
    return [_choice(tuple(group), has_kernels, table, near) for group in together.values()]


def select_forms(
    nodes: Sequence[Node], kernels: Kernels | None, table: FormTable | None, near: frozenset[str]
) -> dict[Node, Selected]:
    """The products among ``nodes`` that are not written as they are in the graph."""
    chosen: dict[Node, Selected] = {}
    for choice in choose_forms(nodes, kernels is not None, table, near):
        if choice.form == "kernel" and kernels is not None:
            members = tuple(product.node for product in choice.products)
            chosen |= dict.fromkeys(members, project(kernels, choice.products))
            continue
        for product in choice.products:
            selected = select_form(product, choice.form)
            if selected is not None:
                chosen[product.node] = selected
    return chosen


def forms_of_program(graph: Graph, has_kernels: bool, table: FormTable | None) -> list[Choice]:
    """The choices for all products of a program, those in loops among them, in the order of its nodes."""
    choices = choose_forms(graph.nodes, has_kernels, table, near_parameters(graph, table))
    for node in graph.nodes:
        if node.op.name == "loop":
            body, behind = node.params["body"], node.params["carries"] + node.params["scanned"]
            choices += choose_forms(body.nodes, has_kernels, table, near_inputs(body.inputs[behind:], table))
    return choices


def near_parameters(graph: Graph, table: FormTable | None) -> frozenset[str]:
    """The parameters that stay in the caches from one run of a program to the next, if all of them fit.

    Not those that are kept in fewer bits: near weights are measured in a loop, out of which XLA moves what
    makes them wider, and a program does that in each run.
    """
    fits = table is not None and sum(node.tensor.bytes for node in graph.parameters) <= table.near_bytes
    return frozenset(node.name for node in graph.parameters if fits and node.tensor.dtype == "f32")


def near_inputs(kept: Sequence[Node], table: FormTable | None) -> frozenset[str]:
    """The inputs of a loop's body that stay in the caches from one position to the next, of those that are
    ``kept`` the same: all or none."""
    fits = table is not None and sum(node.tensor.bytes for node in kept) <= table.near_bytes
    return frozenset(node.name for node in kept) if fits else frozenset()


def _choice(
    group: tuple[Product, ...], has_kernels: bool, table: FormTable | None, near: frozenset[str]
) -> Choice:
    first = group[0]
    columns = sum(product.matrix.tensor.size for product in group) // first.width
    # What is computed just before is near.
    is_near = all(kept.name in near or kept.op.kind != "source" for kept in first.stored)
    setting = Setting(first.weights, first.turned, is_near, first.rows, first.width, columns)
    available = available_forms(first, has_kernels=has_kernels)
    if table is None:
        return Choice(group, setting, "kernel" if has_kernels else "dot")
    return Choice(group, setting, table.choose(setting, available))

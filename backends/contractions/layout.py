"""Which matrices are read faster the other way round than files have them, by the table of this machine."""

from __future__ import annotations

from dataclasses import replace

from ...ir.graph import Graph, Node
from .products import Product, find_product
from .selection import near_parameters
from .table import MARGIN, FormTable, Setting


def faster_transposed(graph: Graph, table: FormTable, *, rows: int, has_kernels: bool) -> tuple[str, ...]:
    """The parameters [d, n] of a per-token graph that a step of so many rows reads faster as [n, d]: those of
    which nothing is read but products that sum over d."""
    near = near_parameters(graph, table)
    found = {product.node: product for product in filter(None, map(find_product, graph.nodes))}
    names = []
    for node in graph.parameters:
        products = _products_of(node, graph, found)
        if not products or not all(product.turned for product in products):
            continue
        width, columns = node.tensor.static_shape
        turned = Setting(products[0].weights, True, node.name in near, rows, width, columns)
        if table.nearest(turned) is None:
            continue
        ways = (turned, replace(turned, turned=False))
        as_it_is, transposed = (table.seconds(way, has_kernels=has_kernels) for way in ways)
        if transposed < MARGIN * as_it_is:
            names.append(node.name)
    return tuple(names)


def _products_of(parameter: Node, graph: Graph, found: dict[Node, Product]) -> list[Product]:
    """The products that read a matrix, itself or widened; none where something else does."""
    users = list(graph.users[parameter])
    if [user.op.name for user in users] == ["cast"]:
        users = list(graph.users[users[0]])
    products = [found[user] for user in users if user in found]
    reads_it_all = len(products) == len(users) and all(p.stored == (parameter,) for p in products)
    return products if reads_it_all else []

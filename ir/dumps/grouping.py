"""An order of nodes that keeps groups of them together as far as what they read allows."""

from __future__ import annotations

from collections.abc import Hashable

from ..graph import Node, postorder

Group = Hashable  # a scope by its name, a node on its own, or anything else for several scopes


def together(nodes: list[Node], group_of: dict[Node, Group]) -> list[list[Node]]:
    """The nodes by group, each group after what it reads.

    Of groups that read each other, scopes fall apart into nodes first (in ``group_of``, too), then
    repeats into scopes.
    """
    import networkx as nx  # a tenth of a second to load, for those who print a graph

    while True:
        reads: dict[Group, dict[Group, None]] = {}
        for node in nodes:
            own = reads.setdefault(group_of[node], {})
            own.update(dict.fromkeys(group_of[source] for source in node.sources if source in group_of))
        flow = nx.DiGraph((source, group) for group, sources in reads.items() for source in sources)
        flow.remove_edges_from([(group, group) for group in reads])
        tangled = [
            group for part in nx.strongly_connected_components(flow) if len(part) > 1 for group in part
        ]
        if not tangled:
            break
        scopes = {group for group in tangled if isinstance(group, str)} or set(tangled)
        for node in nodes:
            if group_of[node] in scopes:
                group_of[node] = node if isinstance(group_of[node], str) else node.scope
    members: dict[Group, list[Node]] = {}
    for node in nodes:
        members.setdefault(group_of[node], []).append(node)
    return [members[group] for group in postorder(members, lambda group: reads[group])]

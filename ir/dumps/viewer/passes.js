/* What a pass did, in the graph that it made: nodes get a `change`, and what was removed is put back. */

function definition(node) {
  const reads = node.reads.map((edge) => edge.literal ?? `${edge.source.name}[${edge.access}]`);
  return JSON.stringify([node.op, node.type, node.params, reads]);
}

/** The graph `after` with changes against `before`; both are read anew, `after` is changed in place. */
function withChanges(before, after) {
  for (const node of after.nodes) {
    const old = before.byName.get(node.name);
    node.change = !old ? "added" : definition(old) !== definition(node) ? "changed" : null;
  }
  const removed = before.nodes.filter((node) => !after.byName.has(node.name));
  for (const old of removed) {
    const ghost = { ...old, id: after.nodes.length, change: "removed", reads: [], users: [], outputs: [], cost: [0, 0, 0, 0] };
    after.nodes.push(ghost);
    after.byName.set(ghost.name, ghost);
  }
  for (const old of removed) {
    const ghost = after.byName.get(old.name);
    for (const edge of old.reads) {
      const source = edge.source && after.byName.get(edge.source.name);
      if (source) ghost.reads.push({ source, access: edge.access, kind: "gone" });
      else if (edge.literal) ghost.reads.push(edge);
    }
    for (const { user, access } of old.users) {
      const reader = after.byName.get(user.name);
      if (reader.change !== "removed") (reader.formerReads ||= []).push({ source: ghost, access, kind: "gone" });
      ghost.users.push({ user: reader, access, kind: "gone" });
    }
  }
  return after;
}

function countChanges(graph) {
  const counts = { added: 0, removed: 0, changed: 0 };
  for (const node of graph.nodes) if (node.change) counts[node.change]++;
  return counts;
}

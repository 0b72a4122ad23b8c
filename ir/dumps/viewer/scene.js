/* What is drawn of one graph: the visible boxes and nodes with their places, and the routes between
   them. Every open box is laid out on its own; an edge that crosses its border enters by a port. */

const PAD = 14, HEADER = 26, LINE = 15, PORT_HEIGHT = 16;
const KIND_SHIFT = { now: 0, delay: -14, window: 14, prefix: 14, whole: -14, feedback: 24, gone: -20 };
const OP_CLASSES = [
  ["contraction", /^(contraction|matmul)$/],
  ["time", /^(history|delay|feedback|position|whole|write_rows|read_rows|input)$/],
  ["reduction", /^(sum|max|min|mean|argmax|softmax|cumulative_sum|top_k|loop)$/],
  ["movement", /^(reshape|transpose|slice|concatenate|broadcast_to|take|cast|split|stack|part|arange|constant|parameter)$/],
];
const canvas = document.createElement("canvas").getContext("2d");
const FONTS = { plain: "12px system-ui, sans-serif", bold: "600 12px system-ui, sans-serif", mono: "10.5px ui-monospace, monospace" };
const measured = new Map();

function textWidth(text, font) {
  const key = `${font}|${text}`;
  if (!measured.has(key)) {
    canvas.font = FONTS[font];
    measured.set(key, Math.ceil(canvas.measureText(text).width));
  }
  return measured.get(key);
}

function opClass(op) {
  return (OP_CLASSES.find(([, pattern]) => pattern.test(op)) || ["elementwise"])[0];
}

function isState(node) {
  return node.op === "input" && node.name.startsWith("state.");
}

/** Lines of a node: [{text, font, class}] each. */
function nodeLines(node) {
  const short = node.op === "parameter" ? lastWords(node.name, 2) : shortName(node), isNamed = !new RegExp(`^${node.op}(\\.\\d+)*$`).test(short);
  const literals = node.reads.filter((edge) => edge.literal !== undefined).map((edge) => edge.literal);
  const title = isNamed ? [{ text: clip(short, 34), font: "bold" }] : [];
  if (node.op === "input") title.push({ text: isState(node) ? "state" : "input", font: "plain", class: "muted" });
  else if (node.op === "parameter") title.push({ text: "weight", font: "plain", class: "muted" });
  else title.push({ text: [node.op, ...literals].join(" "), font: "plain", class: isNamed ? "muted" : "" });
  const lines = [title, [{ text: clip(node.type, 40), font: "mono", class: "muted" }]];
  const subscripts = node.params.find(([key]) => key === "subscripts");
  if (subscripts) lines.push([{ text: clip(JSON.parse(subscripts[1]).replace("->", " → "), 40), font: "mono", class: "muted" }]);
  return lines;
}

function weightLines(node) {
  const weights = node.reads.filter((edge) => edge.source && edge.source.op === "parameter").map((edge) => edge.source);
  return weights.map((w) => [{ text: `${w.name.split(".").slice(-2).join(".")} ${w.type.replace(/^\w+/, "")}`, font: "mono", class: "weight", about: w }]);
}

/** The end of a name; a number stays with the word before it. */
function lastWords(name, words) {
  return name.split(/\.(?!\d)|\//).slice(-words).join(".");
}

function clip(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

function boxLines(view, about) {
  const label = view.label || view.item.label, units = unitsOf(view);
  const title = [{ text: label, font: "bold" }];
  if (units) title.push({ text: `× ${units.length}`, font: "bold", class: "times" });
  if (view.item.kind === "loop") title.push({ text: `loop × ${view.item.loop.params.find(([key]) => key === "length")?.[1] ?? ""}`, font: "plain", class: "muted" });
  const facts = [`${count(about.nodes)} node${about.nodes === 1 ? "" : "s"}`];
  if (about.weights) facts.push(`${bytes(about.weights)} weights`);
  const lines = [title, [{ text: facts.join(" · "), font: "plain", class: "muted" }]];
  const kept = about.kept.slice(0, 3).map(({ text, kind }) => ({ text, font: "mono", class: `access ${kind}` }));
  if (about.kept.length > 3) kept.push({ text: `+${about.kept.length - 3}`, font: "mono", class: "muted" });
  if (kept.length) lines.push(kept);
  return lines;
}

/** The layers that one box stands for, if it stands for several. */
function unitsOf(view) {
  return view.range || (view.item.kind === "fold" ? view.item.children : null);
}

function sizeOf(lines) {
  const widths = lines.map((line) => line.reduce((sum, { text, font }) => sum + textWidth(text, font) + 6, -6));
  return { width: Math.max(64, ...widths) + 22, height: lines.length * LINE + 13 };
}

/** Counts of a closed box: nodes, bytes of weights, cost, what it remembers, what a pass changed. */
function summary(nodes, graph) {
  const weights = new Set(), kept = new Map(), cost = [0, 0, 0, 0, 0], changes = { added: 0, removed: 0, changed: 0 };
  let shown = 0;
  for (const node of nodes) {
    if (node.op !== "parameter") shown++;
    if (node.change) changes[node.change]++;
    nodeCost(node).forEach((value, i) => (cost[i] += value));
    if (isState(node)) kept.set(`state ${node.name.split(".").at(-1)}`, "state");
    for (const edge of node.reads) {
      if (!edge.source) continue;
      if (edge.source.op === "parameter") weights.add(edge.source);
      if (edge.kind !== "now") kept.set(`${shortName(edge.source)}[${edge.access}]`, edge.kind);
    }
  }
  const total = [...weights].reduce((sum, weight) => sum + weight.cost[3], 0);
  return { nodes: shown, weights: total, cost, changes, kept: [...kept].map(([text, kind]) => ({ text, kind })), graph };
}

/** [multiply-adds, elementwise operations, bytes read and written, bytes of the value, bytes of state]. */
function nodeCost(node) {
  if (!node.fullCost) {
    const [multiplyAdds, elementwise, moved, value] = node.cost;
    const isDeclared = node.op === "parameter" || node.op === "input" || node.op === "constant";
    const isView = !multiplyAdds && !elementwise && !moved; // nothing is done: no byte is touched
    const read = isView ? 0 : node.reads.reduce((sum, edge) => sum + (edge.source ? bytesRead(node, edge.source) : 0), 0);
    node.fullCost = [multiplyAdds, elementwise, isView ? 0 : read + value, isDeclared ? 0 : value, node.stateBytes || 0];
  }
  return node.fullCost;
}

/** A row that is taken from a table moves alone; other operands move whole. */
function bytesRead(node, source) {
  return node.op === "take" || node.op === "read_rows" ? Math.min(source.cost[3], node.cost[3]) : source.cost[3];
}

/* ---- levels and ports ---- */

class Level {
  constructor(view) {
    this.view = view;
    this.items = view.children.map((child, index) => {
      child.index = index;
      return child;
    });
    this.ports = new Map();
    this.edges = new Map();
  }

  port(end, kind, stream) {
    const key = `${end}|${kind}|${stream.id}`;
    if (!this.ports.has(key)) {
      const text = clip(end === "top" ? lastWords(stream.name, 2) : shortName(stream), 24);
      const port = { end, kind, stream, text, width: textWidth(text, "mono") + 16, height: PORT_HEIGHT, index: this.items.length, view: this.view };
      this.items.push(port);
      this.ports.set(key, port);
    }
    return this.ports.get(key);
  }

  connect(from, to, edge) {
    const key = `${from.item.index}|${from.port?.index}|${to.item.index}|${to.port?.index}|${edge.kind}`;
    if (!this.edges.has(key)) this.edges.set(key, { from, to, kind: edge.kind, streams: new Set(), accesses: new Set(), users: new Set() });
    const joined = this.edges.get(key);
    joined.streams.add(edge.source);
    joined.users.add(edge.user);
    joined.accesses.add(edge.access);
  }
}

/** The edges of a graph as they are drawn: loops are entered, and what a pass cut is there. */
function* drawnEdges(graph) {
  for (const node of graph.nodes) {
    for (let i = 0; i < node.reads.length; i++) {
      let { source, access, kind } = node.reads[i];
      if (!source) continue;
      const user = node.inner ? node.inner[i] : node;
      if (source.results) {
        const index = node.params.find(([key]) => key === "index");
        source = source.results[index ? +index[1] : 0];
      }
      if (isState(source)) kind = "state";
      yield { source, user, access, kind };
    }
    for (const { source, access, kind } of node.formerReads || []) yield { source, user: node, access, kind };
  }
}

function connectLevels(graph, views) {
  const levels = new Map();
  const level = (view) => {
    if (!levels.has(view)) levels.set(view, new Level(view));
    return levels.get(view);
  };
  for (const view of views.values()) for (let up = view.parent; up && !levels.has(up); up = up.parent) level(up);
  for (const edge of drawnEdges(graph)) {
    const source = views.get(edge.source), user = views.get(edge.user);
    if (!source || !user || source === user) continue;
    const above = new Set();
    for (let view = user.parent; view; view = view.parent) above.add(view);
    let from = { item: source }, to = { item: user };
    while (!above.has(from.item.parent)) {
      const container = level(from.item.parent), port = container.port("bottom", edge.kind, edge.source);
      container.connect(from, { item: port }, edge);
      from = { item: container.view, port };
    }
    while (to.item.parent !== from.item.parent) {
      const container = level(to.item.parent), port = container.port("top", edge.kind, edge.source);
      container.connect({ item: port }, to, edge);
      to = { item: container.view, port };
    }
    level(from.item.parent).connect(from, to, edge);
  }
  return levels;
}

/* ---- sizes and places ---- */

const layouts = new Map(); // layers that are alike are laid out once

function layoutOf(items, edges) {
  const key = JSON.stringify([items.map((i) => [i.width, i.height, i.end]), edges.map((e) => [e.from, e.to, e.fromX, e.toX, e.kind])]);
  if (!layouts.has(key)) {
    if (layouts.size > 400) layouts.clear();
    layouts.set(key, layered(items, edges));
  }
  return layouts.get(key);
}

/** The scene: {views, ports, routes, width, height}, all in the coordinates of the drawing. */
function makeScene(hierarchy, folding, showsWeights) {
  const { graph } = hierarchy, { root, views } = visibleTree(hierarchy, folding, showsWeights);
  const levels = connectLevels(graph, views);
  const order = [root];
  for (let at = 0; at < order.length; at++) order.push(...order[at].children);
  for (const view of [...order].reverse()) sizeView(view, levels.get(view), graph, showsWeights);
  root.x = root.y = 0;
  const scene = { root, graph, views: order.slice(1), viewOf: views, ports: [], routes: [], width: root.width, height: root.height };
  for (const view of order) if (view.open && levels.has(view)) placeLevel(view, levels.get(view), scene);
  return scene;
}

function sizeView(view, level, graph, showsWeights) {
  if (!(view.item instanceof Box)) {
    view.lines = [...nodeLines(view.item), ...(showsWeights ? [] : weightLines(view.item))];
    Object.assign(view, sizeOf(view.lines));
    return;
  }
  view.about = summary(view.nodes || view.item.nodes, graph);
  if (!view.open) {
    view.lines = boxLines(view, view.about);
    Object.assign(view, sizeOf(view.lines));
    return;
  }
  const edges = level ? [...level.edges.values()] : [];
  if (level) shrinkPassing(level, edges);
  const items = level ? level.items : [];
  view.layout = layoutOf(items, edges.map((edge) => ({
    from: edge.from.item.index,
    to: edge.to.item.index,
    fromX: edgeX(edge.from, edge.kind),
    toX: edgeX(edge.to, edge.kind),
    kind: edge.kind,
  })));
  const isRoot = !view.parent;
  const title = isRoot ? 0 : textWidth(view.item.label, "bold") + (view.item.kind === "fold" ? 210 : 70);
  const inner = view.layout.width;
  view.width = isRoot ? inner : Math.max(inner, title) + 2 * PAD;
  view.inset = isRoot ? 0 : (view.width - inner) / 2;
  view.height = isRoot ? view.layout.height : view.layout.height + HEADER + 2 * PAD;
  (level ? level.items : []).forEach((item, i) => {
    if (item.end) item.x0 = view.inset + view.layout.places[i].x + item.width / 2;
  });
}

/** Ports that only lead on to the ports of one box inside are dots without a name. */
function shrinkPassing(level, edges) {
  const named = new Set();
  for (const { from, to } of edges) {
    if (from.item.end && !to.port) named.add(from.item);
    if (to.item.end && !from.port) named.add(to.item);
  }
  for (const port of level.ports.values()) if (!named.has(port)) Object.assign(port, { text: "", width: 8, height: 8 });
}

function edgeX({ item, port }, kind) {
  if (port) return Math.round(port.x0);
  const reach = Math.max(0, item.width / 2 - 12);
  return Math.round(item.width / 2 + Math.max(-reach, Math.min(reach, KIND_SHIFT[kind] ?? 0)));
}

function placeLevel(view, level, scene) {
  const left = view.x + view.inset, top = view.y + (view.parent ? HEADER + PAD : 0);
  level.items.forEach((item, i) => {
    item.x = left + view.layout.places[i].x;
    item.y = top + view.layout.places[i].y;
    if (!item.end) return;
    scene.ports.push(item);
    const x = item.x + item.width / 2, border = item.end === "top" ? view.y : view.y + view.height;
    const points = [{ x, y: border }, { x, y: item.end === "top" ? item.y : item.y + item.height }];
    scene.routes.push({ points: item.end === "top" ? points : points.reverse(), kind: item.kind, streams: new Set([item.stream]), accesses: new Set(), users: new Set(), isStub: true, from: item, to: item, within: view });
  });
  [...level.edges.values()].forEach((edge, i) => {
    const points = view.layout.routes[i].map(({ x, y }) => ({ x: left + x, y: top + y }));
    scene.routes.push({ ...edge, points, from: edge.from.item, to: edge.to.item, within: view });
  });
}

/* ---- numbers as people write them ---- */

function count(number) {
  return number.toLocaleString("en");
}

function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit++;
  }
  return `${unit && number < 100 ? number.toFixed(1) : Math.round(number)} ${units[unit]}`;
}

function short(number) {
  const units = ["", " k", " M", " G", " T", " P"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit++;
  }
  return `${unit && number < 100 ? number.toFixed(1) : Math.round(number)}${units[unit]}`;
}

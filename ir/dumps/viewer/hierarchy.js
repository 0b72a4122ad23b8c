/* Scopes as boxes in boxes. A box is {key, label, kind, parent, children, nodes}; children are boxes
   and nodes. Layers that repeat are the units of one `fold` box. Keys of boxes end with a slash, so
   that no node has the same. */

const FOLD_RANGE = "–";

class Box {
  constructor(key, label, kind, parent) {
    Object.assign(this, { key, label, kind, parent, children: [], nodes: [] });
    if (parent) parent.children.push(this);
  }

  get depth() {
    let depth = 0;
    for (let box = this.parent; box; box = box.parent) depth++;
    return depth;
  }
}

/** `encoder.layers.0.attn` as [encoder] [layers.0] [attn]: a number stays with the word before it. */
function scopeParts(scope) {
  const parts = [];
  for (const word of scope.split(".")) {
    const last = parts.at(-1);
    if (/^\d+$/.test(word) && last && last.number === null) {
      parts[parts.length - 1] = { path: `${last.path}.${word}`, label: `${last.label}.${word}`, prefix: last.path, number: +word };
    } else {
      parts.push({ path: last ? `${last.path}.${word}` : word, label: word, prefix: "", number: null });
    }
  }
  return parts;
}

class Hierarchy {
  constructor(graph) {
    this.graph = graph;
    this.root = new Box("/", graph.name, "root", null);
    this.boxes = new Map([["/", this.root]]);
    this.placeOf = new Map(); // the innermost box of each node
    const loose = [];
    for (const node of graph.nodes) {
      if (node.inside) this.place(node, this.box(`${node.inside.name}/`));
      else if (node.inner) this.place(node, this.loopBox(node));
      else if (node.scope) this.place(node, this.scopeBox(node.scope));
      else loose.push(node);
    }
    this.placeLoose(loose);
    this.fillLoops();
    this.sortChildren();
  }

  box(key, ...made) {
    if (!this.boxes.has(key)) this.boxes.set(key, new Box(key, ...made));
    return this.boxes.get(key);
  }

  scopeBox(scope) {
    const known = this.boxes.get(`${scope}/`);
    if (known) return known;
    let parent = this.root;
    for (const part of scopeParts(scope)) {
      if (part.number !== null) parent = this.unitParent(part, parent);
      parent = this.box(`${part.path}/`, part.label, "scope", parent);
      if (part.number !== null) parent.number = part.number;
    }
    return parent;
  }

  /** The box that a numbered scope stands in: that of its fold, or of its unit of several layers. */
  unitParent({ prefix, number, label }, parent) {
    const fold = this.graph.folds.find((f) => f.prefix === prefix && f.first <= number && number <= f.last);
    if (!fold) return parent;
    const word = label.slice(0, label.lastIndexOf("."));
    const { first, last, period } = fold;
    const box = this.box(`${prefix}.${first}-${last}/`, `${word}.${first}${FOLD_RANGE}${last}`, "fold", parent);
    Object.assign(box, { fold, word });
    if (period === 1) return box;
    const base = number - ((number - first) % period), end = base + period - 1;
    const unit = this.box(`${prefix}.${base}-${end}/`, `${word}.${base}${FOLD_RANGE}${end}`, "scope", box);
    unit.number = base;
    return unit;
  }

  loopBox(node) {
    const parent = node.scope ? this.scopeBox(node.scope) : this.root;
    const box = this.box(`${node.name}/`, shortName(node), "loop", parent);
    box.loop = node;
    return box;
  }

  fillLoops() {
    for (const box of this.boxes.values()) if (box.kind === "loop") box.children = box.children.filter((child) => child !== box.loop);
  }

  /** Nodes without a scope: weights and states go to what reads them, others by how their names begin. */
  placeLoose(nodes) {
    const groups = new Map();
    const first = (node) => node.name.split(".")[0];
    const goesToReaders = (node) =>
      node.op === "parameter" || node.op === "constant" || isState(node);
    const hasOwnName = (node) => first(node) !== node.op;
    for (const node of nodes) {
      if (!goesToReaders(node) && node.op !== "input") groups.set(first(node), (groups.get(first(node)) || 0) + 1);
    }
    for (const node of nodes) {
      if (goesToReaders(node)) continue;
      const shared = node.op !== "input" && hasOwnName(node) && groups.get(first(node)) > 1;
      this.place(node, shared ? this.box(`${first(node)}/`, first(node), "scope", this.root) : this.root);
    }
    for (const node of nodes) if (goesToReaders(node)) this.place(node, this.commonBox(node.users.map(({ user }) => user)));
  }

  /** The innermost box that holds all of the nodes. */
  commonBox(nodes) {
    let common = null;
    for (const node of nodes) {
      const chain = [];
      for (let box = this.placeOf.get(node) || this.root; box; box = box.parent) chain.unshift(box);
      if (common === null) common = chain;
      let same = 0;
      while (same < common.length && common[same] === chain[same]) same++;
      common = common.slice(0, same);
    }
    let box = common && common.length ? common.at(-1) : this.root;
    while (box.kind === "fold") box = box.parent;
    return box;
  }

  place(node, box) {
    this.placeOf.set(node, box);
    box.children.push(node);
    for (let around = box; around; around = around.parent) around.nodes.push(node);
  }

  sortChildren() {
    const rank = (child) => (child instanceof Box ? (child.nodes[0] ? child.nodes[0].id : 0) : child.id);
    for (const box of this.boxes.values()) {
      if (box.kind === "fold") box.children = box.children.filter((child) => child instanceof Box).sort((a, b) => a.number - b.number);
      else box.children.sort((a, b) => rank(a) - rank(b));
    }
  }

  /** The boxes around a node or box, outermost first, without the root. */
  around(item) {
    const chain = [];
    let box = item instanceof Box ? item.parent : this.placeOf.get(item);
    for (; box && box !== this.root; box = box.parent) chain.unshift(box);
    return chain;
  }

  find(key) {
    return key.endsWith("/") ? this.boxes.get(key) : this.graph.byName.get(key);
  }
}

function shortName(node) {
  if (isState(node)) return node.name.slice(node.name.lastIndexOf(".") + 1);
  if (node.inside) return node.name.slice(node.name.lastIndexOf("/") + 1).replace(`${node.inside.scope}.`, "");
  return node.scope && node.name.startsWith(`${node.scope}.`) ? node.name.slice(node.scope.length + 1) : node.name;
}

/** What a node is called in every stage: `k@state` and the input `state.….k` belong to the stream `k`. */
function streamName(name) {
  const plain = name.slice(name.lastIndexOf("/") + 1);
  return plain.replace(/^(?:state|carry|stream)\./, "").replace(/@.*$/, "");
}

/* ---- what is visible ---- */

/** The tree that is drawn: {item, key, parent, children, open, hidden}; `folding` says what is open.

    An open fold shows one of its units, and what lies before and behind it as boxes. */
function visibleTree(hierarchy, folding, showsWeights) {
  const views = new Map(); // of each node, the innermost view that shows it
  const root = { item: hierarchy.root, key: "/", parent: null, children: [], open: true };
  const pending = [root];
  while (pending.length) {
    const view = pending.pop();
    if (!view.open) {
      for (const node of view.nodes || view.item.nodes) views.set(node, view);
      continue;
    }
    for (const child of visibleChildren(view, folding)) {
      if (!(child.item instanceof Box) && child.item.op === "parameter" && !showsWeights) continue;
      child.parent = view;
      view.children.push(child);
      if (child.item instanceof Box) pending.push(child);
      else views.set(child.item, child);
    }
    if (view.item.loop) views.set(view.item.loop, view);
  }
  return { root, views };
}

function visibleChildren(view, folding) {
  const box = view.item;
  if (box.kind !== "fold") return box.children.map((child) => viewOf(child, folding));
  const shown = folding.unitOf(box);
  if (shown === "all") return box.children.map((child) => viewOf(child, folding));
  const at = box.children.findIndex((unit) => unit.number === shown);
  const units = box.children;
  return [rangeView(box, units.slice(0, at)), viewOf(units[at], folding), rangeView(box, units.slice(at + 1))].filter(Boolean);
}

function viewOf(child, folding) {
  const isBox = child instanceof Box;
  return { item: child, key: isBox ? child.key : child.name, children: [], open: isBox && folding.isOpen(child) };
}

/** Several units of a fold as one closed box. */
function rangeView(box, units) {
  if (!units.length) return null;
  if (units.length === 1) return { item: units[0], key: units[0].key, children: [], open: false };
  const last = units.at(-1).label.split(FOLD_RANGE).at(-1).replace(/^.*\./, "");
  const label = `${units[0].label.split(FOLD_RANGE)[0]}${FOLD_RANGE}${last}`;
  const nodes = units.flatMap((unit) => unit.nodes);
  return { item: box, key: `${box.key}${units[0].number}/`, children: [], open: false, range: units, label, nodes };
}

/** What is open: scopes by their keys, and of each family of layers the one that is shown. */
class Folding {
  constructor() {
    this.open = new Set();
    this.units = new Map(); // prefix of a family: a number, or "all"
  }

  isOpen(box) {
    if (box.kind === "fold") return this.unitOf(box) !== null;
    return this.open.has(box.key);
  }

  /** The number of the unit that an open fold shows, "all", or null where it is closed. */
  unitOf(box) {
    const shown = this.units.get(box.fold.prefix);
    if (shown === undefined || shown === "all") return shown ?? null;
    const unit = box.children.find((u) => u.number <= shown && shown < u.number + box.fold.period);
    return unit ? unit.number : null;
  }

  toggle(box) {
    if (this.isOpen(box)) this.close(box);
    else this.show(box);
  }

  show(box) {
    if (box.kind !== "fold") this.open.add(box.key);
    else this.showUnit(box, box.children[0].number);
  }

  close(box) {
    if (box.kind === "fold") this.units.delete(box.fold.prefix);
    else this.open.delete(box.key);
  }

  /** Shows one unit of a fold; what was open in the one shown before is open in it. */
  showUnit(box, number) {
    const shown = this.unitOf(box);
    const [before, after] = [shown, number].map((n) => box.children.find((unit) => unit.number === n));
    if (before && after) {
      for (const key of [...this.open]) {
        if (!key.startsWith(before.key.slice(0, -1))) continue;
        const moved = moveKey(key, box.fold, before.number, after.number);
        this.open.delete(key);
        this.open.add(moved);
      }
    }
    this.units.set(box.fold.prefix, number);
    this.open.add(after.key);
  }
}

/** The key of the same thing in another unit. */
function moveKey(key, fold, from, to) {
  const pattern = new RegExp(`(?<![\\w-])${fold.prefix.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}\\.(\\d+)(?:-(\\d+))?`, "g");
  return key.replace(pattern, (_, a, b) => `${fold.prefix}.${+a + to - from}${b === undefined ? "" : `-${+b + to - from}`}`);
}

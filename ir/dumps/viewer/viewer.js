/* The page: which stages are shown, what is selected and open in all of them, and how they are linked. */

const HEATS = [["multiply-adds", 0], ["elementwise operations", 1], ["bytes read and written", 2], ["bytes of state", 4]];

class Viewer {
  constructor(data) {
    Object.assign(this, { data, folding: new Folding(), selected: null, hovered: null, heat: null, showsWeights: false, traced: null });
    this.pass = data.pass;
    this.graphs = new Map();
    this.panes = new Map();
    this.stages = [
      { name: "passes", title: "per token", about: (graph) => this.aboutPass(graph) },
      ...data.programs.map((program) => ({ name: program.name, title: program.name, about: (graph) => aboutGraph(graph) })),
    ];
    this.panel = new Panel(this, document.getElementById("panel"));
    this.search = new Search(this, document.getElementById("search"), document.getElementById("found"));
    this.makeToolbar();
    document.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.linkPanes()).observe(document.getElementById("panes"));
  }

  start() {
    for (const scope of this.data.expand) this.expandScope(scope);
    for (const name of this.data.shown) this.showStage(name, true, false);
    this.arrange();
    for (const pane of this.panes.values()) pane.fit();
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (wanted && this.anyGraph((hierarchy) => hierarchy.find(wanted))) this.goTo(wanted);
    else this.panel.render();
  }

  /* ---- stages ---- */

  /** The hierarchy of a stage; of a pass, with what it changed. Each text is read when it is first shown. */
  hierarchy(name) {
    const key = name === "passes" ? `passes ${this.pass}` : name;
    if (!this.graphs.has(key)) this.graphs.set(key, new Hierarchy(this.withStates(this.readGraph(name))));
    return this.graphs.get(key);
  }

  readGraph(name) {
    if (name !== "passes") return readDump(this.data.programs.find((program) => program.name === name).text);
    const after = readDump(this.data.passes[this.pass].text);
    return this.pass ? withChanges(readDump(this.data.passes[this.pass - 1].text), after) : after;
  }

  /** Notes on each stream, and on each input that holds one, what is kept of it. */
  withStates(graph) {
    for (const state of this.data.states) {
      const stream = graph.byName.get(`state.${state.name}`) || graph.byName.get(state.name) || graph.byName.get(state.name.replace(/\.\w+$/, ""));
      if (stream) Object.assign(stream, { state, stateBytes: state.bytes_per_token || state.bytes });
    }
    return graph;
  }

  showStage(name, isShown, isArranged = true) {
    if (isShown && !this.panes.has(name)) {
      const pane = new Pane(this, this.stages.find((stage) => stage.name === name));
      this.panes.set(name, pane);
      pane.setGraph(this.hierarchy(name));
    } else if (!isShown && this.panes.size > 1) {
      this.panes.get(name)?.element.remove();
      this.panes.delete(name);
    }
    const container = document.getElementById("panes");
    for (const stage of this.stages) if (this.panes.has(stage.name)) container.append(this.panes.get(stage.name).element);
    for (const button of document.querySelectorAll("#stages button")) button.setAttribute("aria-pressed", this.panes.has(button.dataset.stage));
    document.getElementById("passes").hidden = !this.panes.has("passes");
    if (!this.panes.has(this.active?.stage.name)) this.active = this.panes.values().next().value;
    if (!isArranged) return;
    this.arrange();
    for (const pane of this.panes.values()) pane.fit();
  }

  setPass(pass) {
    this.pass = pass;
    const slider = document.getElementById("pass");
    slider.value = pass;
    slider.setAttribute("aria-valuetext", this.data.passes[pass].name);
    document.getElementById("pass-name").textContent = this.data.passes[pass].name;
    const pane = this.panes.get("passes");
    if (!pane) return;
    pane.setGraph(this.hierarchy("passes"));
    pane.arrange(this.selected);
    this.panel.render();
  }

  aboutPass(graph) {
    const { added, removed, changed } = countChanges(graph);
    const about = aboutGraph(graph);
    return added + removed + changed ? `${about} · +${count(added)} −${count(removed)} ~${count(changed)}` : about;
  }

  anyGraph(find) {
    for (const pane of [this.active, ...this.panes.values()]) {
      const found = pane && find(pane.hierarchy);
      if (found) return found;
    }
    return null;
  }

  /* ---- arranging ---- */

  arrange(anchor = null) {
    const start = performance.now();
    this.hovered = null; // something else may be under the mouse now
    for (const pane of this.panes.values()) pane.arrange(anchor);
    this.linkPanes();
    document.documentElement.dataset.arranged = (performance.now() - start).toFixed(1);
  }

  toggle(pane, key) {
    const view = pane.byKey.get(key), fold = view?.parent?.item;
    if (!view || !(view.item instanceof Box)) return;
    const shown = fold?.kind === "fold" ? this.folding.unitOf(fold) : null;
    if (view.range) return this.showUnit(pane, view.item, this.nearestUnit(view, shown));
    if (typeof shown === "number" && view.item.number !== shown) return this.showUnit(pane, fold, view.item.number);
    this.folding.toggle(view.item);
    this.openOnly(view.item);
    this.selected = key;
    this.arrange(key);
    this.afterSelection(pane);
    this.frameAll(key);
  }

  /** Brings what was opened or closed into sight, in each pane that has it. */
  frameAll(key) {
    for (const pane of this.panes.values()) {
      const view = this.primary(pane) || pane.viewAt(key);
      if (view?.open) pane.frame(view);
      else if (view) pane.reveal(view);
    }
  }

  nearestUnit(view, shown) {
    return (view.range[0].number > shown ? view.range[0] : view.range.at(-1)).number;
  }

  /** A scope that holds nothing but one more scope is opened with it. */
  openOnly(box) {
    while (box.kind !== "fold" && this.folding.isOpen(box) && box.children.length === 1 && box.children[0] instanceof Box) {
      box = box.children[0];
      this.folding.show(box);
    }
  }

  showUnit(pane, fold, number) {
    const before = this.folding.unitOf(fold);
    this.folding.showUnit(fold, number);
    const key = fold.children.find((unit) => unit.number === number).key;
    const isInside = this.selected && typeof before === "number" && this.selected.startsWith(`${fold.fold.prefix}.${before}`);
    this.selected = isInside ? moveKey(this.selected, fold.fold, before, number) : key;
    this.arrange(fold.key);
    this.afterSelection(pane, true);
    if (!isInside) this.frameAll(key);
  }

  /** The fold that a command of the keyboard is about: that around the selection, or the first open one. */
  foldOf(pane) {
    const item = this.selected && pane.hierarchy.find(this.selected);
    if (item?.kind === "fold") return item;
    const around = item ? pane.hierarchy.around(item).filter((box) => box.kind === "fold") : [];
    return around.at(-1) || pane.scene.views.find((view) => view.item.kind === "fold")?.item;
  }

  stepUnit(pane, direction) {
    const fold = this.foldOf(pane), shown = fold && this.folding.unitOf(fold);
    if (!fold || shown === "all") return;
    const at = fold.children.findIndex((unit) => unit.number === shown) + direction;
    const unit = fold.children[Math.max(0, Math.min(fold.children.length - 1, at))];
    if (unit.number !== shown) this.showUnit(pane, fold, unit.number);
  }

  unroll(pane) {
    const fold = this.foldOf(pane);
    if (fold) this.act(pane, "all", fold.key);
  }

  act(pane, act, key) {
    if (act === "toggle") return this.toggle(pane, key);
    const fold = pane.hierarchy.boxes.get(key);
    if (act === "first") return this.showUnit(pane, fold, fold.children[0].number);
    if (act !== "all") {
      this.selected = key;
      return this.stepUnit(pane, act === "next" ? 1 : -1);
    }
    if (this.folding.unitOf(fold) === "all") this.folding.showUnit(fold, fold.children[0].number);
    else this.folding.units.set(fold.fold.prefix, "all");
    this.selected = key;
    this.arrange(key);
    this.afterSelection(pane);
    this.frameAll(key);
  }

  /** Opens a scope, or the layers whose names begin with it. */
  expandScope(scope) {
    const hierarchy = this.hierarchy("passes"), boxes = [...hierarchy.boxes.values()];
    const box = hierarchy.boxes.get(`${scope}/`) || boxes.find((each) => each.fold?.prefix === scope);
    if (!box) return;
    this.openAround(hierarchy, box);
    this.folding.show(box);
  }

  openAround(hierarchy, item) {
    const around = hierarchy.around(item);
    around.forEach((box, i) => {
      const unit = around[i + 1] || item;
      if (box.kind !== "fold") this.folding.open.add(box.key);
      else if (this.folding.unitOf(box) !== "all" && unit instanceof Box) this.folding.showUnit(box, unit.number);
    });
  }

  /* ---- selection ---- */

  select(key, pane = this.active) {
    this.selected = key;
    this.traced = null;
    this.afterSelection(pane);
  }

  /** Opens what is around a node or box, and selects it. */
  goTo(key, pane = this.active) {
    const owner = [pane, ...this.panes.values()].find((p) => p?.hierarchy.find(key));
    if (!owner) return;
    const item = owner.hierarchy.find(key);
    if (item.op === "parameter") this.setWeights(true);
    for (const each of this.panes.values()) {
      const known = each === owner ? item : each.hierarchy.find(key);
      if (known) this.openAround(each.hierarchy, known);
    }
    this.selected = key;
    this.traced = null;
    this.arrange();
    this.afterSelection(owner, true);
  }

  afterSelection(pane, isRevealed = false) {
    this.active = pane;
    for (const each of this.panes.values()) {
      each.mark();
      const view = this.selected && (each === pane ? each.viewAt(this.selected) : this.primary(each));
      if (view && (each !== pane || isRevealed)) each.reveal(view);
      if (view && !view.open && each === pane && document.activeElement === pane.svg) each.reveal(view);
    }
    history.replaceState(null, "", this.selected ? `#${encodeURIComponent(this.selected)}` : location.pathname + location.search);
    this.linkPanes();
    this.panel.render();
  }

  /** What the mouse is over is marked in all panes; an open box would only be a frame around everything. */
  hover(pane, key) {
    if (key && pane.byKey.get(key)?.open) key = null;
    if (key === this.hovered) return;
    this.hovered = key;
    for (const each of this.panes.values()) each.mark();
  }

  focusPane(pane) {
    this.active = pane;
    if (!this.selected) this.select(pane.topmost().key, pane);
  }

  /** Keys of what is drawn in a pane of the same stream, or of the same scope. */
  counterparts(pane, key) {
    if (!key) return [];
    if (key.endsWith("/")) {
      const fold = this.anyGraph((hierarchy) => hierarchy.boxes.get(key))?.fold;
      const box = pane.hierarchy.boxes.get(key) || (fold && [...pane.hierarchy.boxes.values()].find((b) => b.kind === "fold" && b.fold.prefix === fold.prefix));
      const view = box && pane.viewAt(box.key);
      return view ? [view.key] : [];
    }
    const views = this.streams(pane.hierarchy).get(streamName(key)) || [];
    return [...new Set(views.map((node) => pane.viewAt(node.name)?.key).filter(Boolean))];
  }

  streams(hierarchy) {
    if (!hierarchy.streams) {
      hierarchy.streams = new Map();
      for (const node of hierarchy.graph.nodes) {
        const stream = streamName(node.name);
        if (!hierarchy.streams.has(stream)) hierarchy.streams.set(stream, []);
        hierarchy.streams.get(stream).push(node);
      }
    }
    return hierarchy.streams;
  }

  /** The one view of a pane that stands for the selection: that of the same name, or of the same stream. */
  primary(pane) {
    const own = pane.hierarchy.find(this.selected);
    const key = own && !this.selected.endsWith("/") ? pane.viewAt(this.selected)?.key : this.counterparts(pane, this.selected)[0];
    return key ? pane.byKey.get(key) : null;
  }

  /** Curves between panes that join what is selected in one with what corresponds to it in the next. */
  linkPanes() {
    const overlay = document.getElementById("links"), panes = [...this.panes.values()].filter((pane) => pane.scene);
    const origin = overlay.getBoundingClientRect(), paths = [];
    const spots = this.selected ? panes.map((pane) => this.spot(pane, origin)).filter(Boolean) : [];
    for (let i = 0; i + 1 < spots.length; i++) {
      const [a, b] = [spots[i], spots[i + 1]], half = (a.right + b.left) / 2;
      paths.push(`<path d="M${a.right} ${a.y}C${half} ${a.y} ${half} ${b.y} ${b.left} ${b.y}"/>`);
    }
    overlay.innerHTML = paths.join("");
  }

  spot(pane, origin) {
    const view = this.primary(pane), area = pane.svg.getBoundingClientRect();
    if (!view) return null;
    const { x, y } = pane.toScreen(view.x, view.y), { zoom } = pane.camera;
    const height = view.open ? HEADER : view.height;
    const inside = (value, least, most) => Math.max(least, Math.min(most, value));
    return {
      left: inside(area.left + x, area.left, area.right) - origin.left,
      right: inside(area.left + x + view.width * zoom, area.left, area.right) - origin.left,
      y: inside(area.top + y + (height * zoom) / 2, area.top, area.bottom) - origin.top,
    };
  }

  /** Marks all that reaches the selected node; once more, nothing. */
  trace(pane) {
    const node = this.selected && pane.hierarchy.graph.byName.get(this.selected);
    if (!node || this.traced) this.traced = null;
    else this.traced = { pane, nodes: upstream(node) };
    pane.mark();
    this.panel.render();
  }

  showDetails(isFocused) {
    this.panel.show("selection");
    if (isFocused) this.panel.focus();
  }
}

/** All nodes from which a value is made, itself included. */
function upstream(node) {
  const reached = new Set([node]), pending = [node];
  while (pending.length) {
    for (const { source } of pending.pop().reads) {
      if (!source || reached.has(source)) continue;
      reached.add(source);
      pending.push(source);
    }
  }
  return reached;
}

function aboutGraph(graph) {
  const shown = graph.nodes.filter((node) => node.op !== "parameter" && node.change !== "removed").length;
  return `${count(shown)} nodes · ${count(graph.nodes.length - shown - countChanges(graph).removed)} weights`;
}

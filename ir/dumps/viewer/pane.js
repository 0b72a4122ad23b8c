/* One stage, drawn: boxes, nodes and routes as SVG, with zoom, panning, and keys to walk through it. */

const MOST_DRAWN = 1500; // boxes; of more, only those near the visible part are in the document
const ZOOM = { least: 0.04, most: 3, step: 1.25 };

function escape(text) {
  return String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
}

class Pane {
  constructor(viewer, stage) {
    Object.assign(this, { viewer, stage, camera: { x: 0, y: 0, zoom: 1 }, scene: null });
    this.element = document.createElement("section");
    this.element.className = "pane";
    this.element.dataset.stage = stage.name;
    this.element.setAttribute("aria-label", `${stage.title} graph`);
    this.element.innerHTML = `
      <header><h2></h2><span class="meta"></span>
        <div class="unit" role="group" aria-label="Layer" hidden>
          <button data-step="-1" aria-label="The layer before" title="The layer before ([)">‹</button>
          <output></output>
          <button data-step="1" aria-label="The layer after" title="The layer after (])">›</button>
        </div>
        <div class="tools">
          <button data-zoom="out" aria-label="Zoom out" title="Zoom out (−)">−</button>
          <button data-zoom="fit" aria-label="Fit to the pane" title="Fit (0)">⤢</button>
          <button data-zoom="in" aria-label="Zoom in" title="Zoom in (+)">+</button>
        </div></header>
      <svg tabindex="0" role="tree" aria-label="${escape(stage.title)} graph"><g class="world"></g></svg>`;
    this.svg = this.element.querySelector("svg");
    this.world = this.element.querySelector(".world");
    this.listen();
  }

  listen() {
    const { svg } = this;
    this.element.addEventListener("click", (event) => {
      const zoom = event.target.closest("[data-zoom]");
      if (zoom) this.zoomBy(zoom.dataset.zoom);
      const step = event.target.closest("[data-step]");
      if (step) this.viewer.stepUnit(this, +step.dataset.step);
    });
    svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.shiftKey) this.pan(-event.deltaY - event.deltaX, 0);
      else this.zoomAt(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), event.offsetX, event.offsetY);
    }, { passive: false });
    svg.addEventListener("pointerdown", (event) => this.startDrag(event));
    svg.addEventListener("dblclick", (event) => {
      const key = event.target.closest("[data-key]")?.dataset.key;
      if (key && !event.target.closest("[data-act]")) this.viewer.toggle(this, key);
    });
    svg.addEventListener("pointerover", (event) => this.viewer.hover(this, event.target.closest("[data-key]")?.dataset.key ?? null));
    svg.addEventListener("pointerleave", () => this.viewer.hover(this, null));
    svg.addEventListener("keydown", (event) => this.onKey(event));
    svg.addEventListener("focus", () => svg.matches(":focus-visible") && this.viewer.focusPane(this));
  }

  startDrag(event) {
    if (event.button !== 0) return;
    const from = { x: event.clientX, y: event.clientY };
    let moved = false;
    const move = (next) => {
      if (!moved && Math.hypot(next.clientX - from.x, next.clientY - from.y) < 4) return;
      moved = true;
      this.svg.classList.add("dragged");
      this.pan(next.clientX - from.x, next.clientY - from.y);
      [from.x, from.y] = [next.clientX, next.clientY];
    };
    const end = () => {
      window.removeEventListener("pointermove", move);
      window.removeEventListener("pointerup", end);
      this.svg.classList.remove("dragged");
      if (!moved) this.onClick(event);
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", end);
  }

  onClick(event) {
    this.viewer.active = this;
    this.svg.focus({ preventScroll: true });
    const act = event.target.closest("[data-act]"), item = event.target.closest("[data-key]");
    if (act) this.viewer.act(this, act.dataset.act, act.dataset.of);
    else this.viewer.select(item ? item.dataset.key : null, this);
  }

  /* ---- what is drawn ---- */

  setGraph(hierarchy) {
    this.hierarchy = hierarchy;
    this.element.querySelector("h2").textContent = this.stage.title;
    this.element.querySelector(".meta").textContent = this.stage.about(hierarchy.graph);
  }

  /** Lays out anew; the box or node of `anchor` stays where it is on the screen. */
  arrange(anchor = null) {
    const before = anchor && this.scene && this.viewAt(anchor);
    const place = before && this.toScreen(before.x, before.y);
    this.scene = makeScene(this.hierarchy, this.viewer.folding, this.viewer.showsWeights);
    this.byKey = new Map(this.scene.views.map((view) => [view.key, view]));
    this.heatTo = Math.max(0, ...this.scene.views.filter((view) => !view.open).map((view) => this.heat(view)));
    this.heatOf = this.viewer.heat === null ? 0 : this.totalCost(this.viewer.heat);
    const after = place && this.viewAt(anchor);
    if (after) {
      this.camera.x = place.x - after.x * this.camera.zoom;
      this.camera.y = place.y - after.y * this.camera.zoom;
    }
    this.draw();
  }

  share(view) {
    return this.heatOf ? this.cost(view)[this.viewer.heat] / this.heatOf : 0;
  }

  totalCost(measure) {
    return this.hierarchy.root.nodes.reduce((sum, node) => sum + nodeCost(node)[measure], 0);
  }

  cost(view) {
    return view.item instanceof Box ? view.about.cost : nodeCost(view.item);
  }

  /** What a box is coloured by: its cost, of layers that are alike that of one. */
  heat(view) {
    return this.viewer.heat === null ? 0 : this.cost(view)[this.viewer.heat] / (unitsOf(view)?.length ?? 1);
  }

  /** The view of a key: its own, or that of the innermost visible box around it. */
  viewAt(key) {
    if (this.byKey.has(key)) return this.byKey.get(key);
    const item = this.hierarchy.find(key);
    if (!item) return null;
    if (!(item instanceof Box)) return this.scene.viewOf.get(item) || null;
    const inside = item.nodes.find((node) => this.scene.viewOf.has(node));
    return (inside && this.scene.viewOf.get(inside)) || null;
  }

  draw() {
    const all = this.scene.views.length > MOST_DRAWN, area = all ? this.drawnArea() : null;
    const isNear = (x, y, width, height) => !area || (x < area.right && x + width > area.left && y < area.bottom && y + height > area.top);
    const views = this.scene.views.filter((view) => isNear(view.x, view.y, view.width, view.height));
    const routes = this.scene.routes.filter((route) => {
      const first = route.points[0], last = route.points.at(-1);
      const left = Math.min(first.x, last.x), top = Math.min(first.y, last.y);
      return isNear(left, top, Math.abs(first.x - last.x), Math.abs(first.y - last.y));
    });
    const index = new Map(this.scene.routes.map((route, i) => [route, i]));
    this.world.innerHTML = [
      ...views.filter((view) => view.open).map((view) => drawContainer(view, this)),
      ...routes.map((route) => drawRoute(route, index.get(route))),
      ...this.scene.ports.filter((port) => isNear(port.x, port.y, port.width, port.height)).map(drawPort),
      ...views.filter((view) => !view.open).map((view) => drawItem(view, this)),
      ...routes.filter((route) => !route.isStub && route.kind !== "now").map(drawRouteLabel),
    ].join("");
    this.drawn = area;
    this.elements = new Map();
    for (const element of this.world.querySelectorAll(".item")) this.elements.set(element.dataset.key, element);
    this.move();
    this.mark();
  }

  drawnArea() {
    const { width, height } = this.svg.getBoundingClientRect(), { x, y, zoom } = this.camera;
    return { left: (-x - width / 2) / zoom, right: (-x + 1.5 * width) / zoom, top: (-y - height / 2) / zoom, bottom: (-y + 1.5 * height) / zoom };
  }

  /** Classes for what is selected, hovered, linked and connected. */
  mark() {
    const { selected, hovered } = this.viewer;
    const linked = new Set([...this.viewer.counterparts(this, selected), ...this.viewer.counterparts(this, hovered)]);
    const current = selected && this.viewAt(selected);
    for (const [key, element] of this.elements) {
      element.classList.toggle("selected", key === selected);
      element.classList.toggle("holds", Boolean(current) && key === current.key && key !== selected);
      element.classList.toggle("linked", linked.has(key) && key !== selected);
      element.setAttribute("aria-selected", key === selected);
    }
    const traced = this.viewer.traced?.pane === this ? this.viewer.traced.nodes : null;
    this.svg.classList.toggle("has-selection", Boolean(current && this.byKey.has(selected)) || Boolean(traced));
    for (const element of this.world.querySelectorAll("[data-route]")) {
      const route = this.scene.routes[element.dataset.route];
      element.classList.toggle("near", traced ? isTraced(route, traced) : Boolean(current) && touches(route, current, selected));
    }
    if (traced) for (const [key, element] of this.elements) element.classList.toggle("linked", this.isTracedView(key, traced));
    this.showUnit();
    const focus = current && this.elements.get(current.key);
    if (focus) this.svg.setAttribute("aria-activedescendant", focus.id);
    else this.svg.removeAttribute("aria-activedescendant");
  }

  /** Which layer is open, above the graph, where it is in sight however far one has gone into it. */
  showUnit() {
    const fold = this.viewer.foldOf(this), shown = fold && this.viewer.folding.unitOf(fold), element = this.element.querySelector(".unit");
    element.hidden = typeof shown !== "number";
    if (!element.hidden) element.querySelector("output").textContent = fold.children.find((unit) => unit.number === shown).label;
  }

  isTracedView(key, traced) {
    const view = this.byKey.get(key);
    return !view.open && (view.item instanceof Box ? (view.nodes || view.item.nodes).some((node) => traced.has(node)) : traced.has(view.item));
  }

  /* ---- the camera ---- */

  move() {
    const { x, y, zoom } = this.camera;
    this.world.setAttribute("transform", `translate(${x},${y}) scale(${zoom})`);
    this.svg.classList.toggle("far", zoom < 0.45);
    this.viewer.linkPanes();
  }

  moved() {
    if (this.drawn) {
      const { width, height } = this.svg.getBoundingClientRect(), { x, y, zoom } = this.camera;
      const isInside = -x / zoom >= this.drawn.left && (-x + width) / zoom <= this.drawn.right && -y / zoom >= this.drawn.top && (-y + height) / zoom <= this.drawn.bottom;
      if (!isInside) return this.draw();
    }
    this.move();
  }

  pan(dx, dy) {
    this.camera.x += dx;
    this.camera.y += dy;
    this.moved();
  }

  zoomAt(factor, x, y) {
    const zoom = Math.max(ZOOM.least, Math.min(ZOOM.most, this.camera.zoom * factor)), ratio = zoom / this.camera.zoom;
    this.camera = { x: x - (x - this.camera.x) * ratio, y: y - (y - this.camera.y) * ratio, zoom };
    this.moved();
  }

  zoomBy(how) {
    const { width, height } = this.svg.getBoundingClientRect();
    if (how === "fit") this.fit();
    else this.zoomAt(how === "in" ? ZOOM.step : 1 / ZOOM.step, width / 2, height / 2);
  }

  /** Shows the whole width; a drawing that is higher than the pane is shown from its top, and one that
      would be too small to read where it begins. */
  fit() {
    const { width, height } = this.svg.getBoundingClientRect(), margin = 24;
    const across = (width - 2 * margin) / Math.max(1, this.scene.width), down = (height - 2 * margin) / Math.max(1, this.scene.height);
    const zoom = Math.max(ZOOM.least, Math.min(1.15, across, Math.max(down, 0.6)));
    if (across < 0.2) return this.showBeginning();
    const y = this.scene.height * zoom < height ? Math.max(margin, (height - this.scene.height * zoom) / 2) : margin;
    cancelAnimationFrame(this.gliding);
    this.camera = { x: (width - this.scene.width * zoom) / 2, y, zoom };
    this.moved();
  }

  showBeginning() {
    const { width } = this.svg.getBoundingClientRect(), view = this.topmost(), zoom = 0.8;
    cancelAnimationFrame(this.gliding);
    this.camera = { x: width / 2 - (view.x + view.width / 2) * zoom, y: 24 - view.y * zoom, zoom };
    this.moved();
  }

  /** Moves the camera so that a box or node is in sight, if it is not. */
  reveal(view) {
    const { width, height } = this.svg.getBoundingClientRect(), { x, y } = this.toScreen(view.x, view.y);
    const [w, h] = [view.width * this.camera.zoom, Math.min(view.height * this.camera.zoom, height - 80)];
    const isInSight = x > 8 && y > 8 && x + w < width - 8 && y + h < height - 8;
    const isLegible = view.open || this.camera.zoom >= 0.7;
    if (isInSight && isLegible) return;
    if (view.open) return this.frame(view);
    const zoom = isLegible ? this.camera.zoom : 0.85;
    this.glide({ x: (width - view.width * zoom) / 2 - view.x * zoom, y: (height - view.height * zoom) / 2 - view.y * zoom, zoom });
  }

  /** Moves the camera to a box that was opened, small enough to see its whole width, near its old place. */
  frame(view) {
    const { width, height } = this.svg.getBoundingClientRect();
    const across = (width - 32) / view.width, down = (height - 32) / view.height;
    const zoom = Math.max(ZOOM.least, Math.min(this.camera.zoom, 1.15, Math.max(across, 0.55), Math.max(across, 0.55, down)));
    const own = { x: view.x * zoom, y: view.y * zoom, width: view.width * zoom, height: view.height * zoom };
    const x = own.width > width - 32 ? 16 - own.x + Math.min(0, (width - 32 - own.width) / 2) : (width - own.width) / 2 - own.x;
    const top = this.toScreen(view.x, view.y).y, most = own.height > height - 32 ? 16 : height - 16 - own.height;
    const y = Math.max(16, Math.min(top, most)) - own.y;
    this.glide({ x, y, zoom });
  }

  /** Moves the camera in a fifth of a second, or at once where motion is unwanted. */
  glide(to) {
    cancelAnimationFrame(this.gliding);
    const from = { ...this.camera }, start = performance.now(), isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const frame = (now) => {
      const part = isStill ? 1 : Math.min(1, Math.max(0, (now - start) / 200)), eased = 1 - (1 - part) ** 3;
      for (const key of ["x", "y", "zoom"]) this.camera[key] = from[key] + (to[key] - from[key]) * eased;
      this.moved();
      if (part < 1) this.gliding = requestAnimationFrame(frame);
    };
    frame(start);
  }

  toScreen(x, y) {
    return { x: x * this.camera.zoom + this.camera.x, y: y * this.camera.zoom + this.camera.y };
  }

  /* ---- keys ---- */

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { viewer } = this, current = viewer.selected && this.viewAt(viewer.selected);
    const keys = {
      ArrowUp: () => this.step(current, "up"),
      ArrowDown: () => this.step(current, "down"),
      ArrowLeft: () => this.step(current, "left"),
      ArrowRight: () => this.step(current, "right"),
      Enter: () => current && (current.item instanceof Box ? viewer.toggle(this, current.key) : viewer.showDetails(true)),
      " ": () => current && viewer.toggle(this, current.key),
      Backspace: () => current?.parent?.parent && viewer.select(current.parent.key, this),
      "+": () => this.zoomBy("in"),
      "=": () => this.zoomBy("in"),
      "-": () => this.zoomBy("out"),
      0: () => this.fit(),
      "[": () => viewer.stepUnit(this, -1),
      "]": () => viewer.stepUnit(this, 1),
      u: () => viewer.unroll(this),
      t: () => viewer.trace(this),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }

  /** Selects what is next in a direction: along an edge up or down where there is one, else by place. */
  step(from, direction) {
    const candidates = this.scene.views;
    if (!from) return candidates.length && this.viewer.select(this.topmost().key, this);
    const along = this.alongEdge(from, direction) || nearest(from, candidates, direction);
    if (along) this.viewer.select(along.key, this);
  }

  topmost() {
    return this.scene.root.children.reduce((best, view) => (view.y < best.y || (view.y === best.y && view.x < best.x) ? view : best));
  }

  alongEdge(from, direction) {
    if (from.open && direction === "down") return nearest(from, from.children, "inside");
    if (direction !== "up" && direction !== "down") return null;
    const [near, far] = direction === "up" ? ["to", "from"] : ["from", "to"];
    const ends = this.scene.routes.filter((route) => route[near] === from && !route[far].end).map((route) => route[far]);
    const isBeyond = (view) => (direction === "up" ? view.y < from.y : view.y > from.y);
    return ends.filter(isBeyond).sort((a, b) => distance(from, a) - distance(from, b))[0] || null;
  }
}

function middle(view) {
  return { x: view.x + view.width / 2, y: view.y + (view.open ? 10 : view.height / 2) };
}

function distance(a, b) {
  return Math.hypot(middle(a).x - middle(b).x, middle(a).y - middle(b).y);
}

/** The nearest view in a direction; what lies straight ahead counts as nearer. */
function nearest(from, candidates, direction) {
  const own = middle(from);
  let best = null, least = Infinity;
  for (const view of candidates) {
    if (view === from) continue;
    const dx = middle(view).x - own.x, dy = middle(view).y - own.y;
    const [ahead, aside] = { up: [-dy, dx], down: [dy, dx], left: [-dx, dy], right: [dx, dy], inside: [dy + 1, dx] }[direction];
    const far = ahead + 2.5 * Math.abs(aside);
    if (ahead > 1 && far < least) [best, least] = [view, far];
  }
  return best;
}

function touches(route, view, selected) {
  if (route.from === view || route.to === view) return true;
  const stream = view.item instanceof Box ? null : view.item;
  return Boolean(stream) && view.key === selected && (route.streams.has(stream) || (route.users.has(stream) && route.to.end));
}

function isTraced(route, traced) {
  return [...route.streams].some((stream) => traced.has(stream)) && (route.isStub || [...route.users].some((user) => traced.has(user)));
}

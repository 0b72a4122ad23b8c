/* Search over the stages that are shown: words in names, ops, types and source lines. */

const MOST_FOUND = 60;

class Search {
  constructor(viewer, input, list) {
    Object.assign(this, { viewer, input, list, results: [], at: 0 });
    input.addEventListener("input", () => this.update());
    input.addEventListener("focus", () => this.input.value && this.update());
    input.addEventListener("blur", () => setTimeout(() => this.list.matches(":hover") || this.hide(), 120));
    input.addEventListener("keydown", (event) => this.onKey(event));
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.choose(+option.dataset.at);
    });
  }

  isOpen() {
    return !this.list.hidden;
  }

  onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && this.results.length) {
      event.preventDefault();
      this.at = (this.at + step + this.results.length) % this.results.length;
      this.render();
    } else if (event.key === "Enter" && this.results.length) this.choose(this.at);
  }

  update() {
    const words = this.input.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.results = words.length ? this.find(words) : [];
    this.at = 0;
    this.render();
  }

  /** What matches: each node once for all layers that are alike, best first. */
  find(words) {
    const found = new Map();
    for (const pane of this.viewer.panes.values()) {
      for (const node of pane.hierarchy.graph.nodes) {
        const text = `${node.name} ${node.op} ${node.type} ${node.location}`.toLowerCase();
        if (!words.every((word) => text.includes(word))) continue;
        const pattern = this.pattern(pane.hierarchy, node);
        if (!found.has(pattern)) found.set(pattern, { pattern, node, names: new Set(), stages: new Set() });
        const entry = found.get(pattern);
        entry.names.add(node.name);
        entry.stages.add(pane.stage.title);
      }
    }
    const rank = ({ node }) => (words.every((word) => shortName(node).toLowerCase().startsWith(word)) ? 0 : words.every((word) => node.name.toLowerCase().includes(word)) ? 1 : 2);
    return [...found.values()].sort((a, b) => rank(a) - rank(b)).slice(0, MOST_FOUND);
  }

  pattern(hierarchy, node) {
    const chain = hierarchy.around(node), at = chain.findIndex((box) => box.kind === "fold");
    if (at < 0 || !chain[at + 1]) return node.name;
    return node.name.replace(new RegExp(`(^|\\.)${chain[at + 1].number}(?=\\.|$)`), "$1{i}");
  }

  choose(at) {
    const { names } = this.results[at];
    this.hide();
    const shown = [...names].find((name) => this.viewer.anyGraph((hierarchy) => this.isShown(hierarchy, name)));
    this.viewer.goTo(shown || names.values().next().value);
    this.viewer.active.svg.focus({ preventScroll: true });
  }

  /** Whether a node is in the layer that is shown of its fold. */
  isShown(hierarchy, name) {
    const node = hierarchy.graph.byName.get(name), chain = node ? hierarchy.around(node) : [];
    const at = chain.findIndex((box) => box.kind === "fold");
    return at >= 0 && this.viewer.folding.unitOf(chain[at]) === chain[at + 1]?.number;
  }

  render() {
    this.list.hidden = !this.input.value.trim();
    this.input.setAttribute("aria-expanded", this.isOpen());
    this.list.innerHTML = this.results.length
      ? this.results.map((result, i) => this.option(result, i)).join("")
      : '<p class="muted">Nothing has this in its name, op, type or source line.</p>';
    this.list.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", this.results.length ? `found-${this.at}` : "");
  }

  option({ pattern, node, names, stages }, i) {
    const times = names.size > 1 ? `<span class="times">× ${names.size}</span>` : "";
    return `<div role="option" id="found-${i}" data-at="${i}" aria-selected="${i === this.at}"><b>${escape(pattern)}</b> ${times}<br><span class="muted">${escape(node.op)} · <code>${escape(clip(node.type, 40))}</code> · ${[...stages].map(escape).join(", ")}</span></div>`;
  }

  hide() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
  }

  close() {
    this.hide();
    this.input.value = "";
    this.input.blur();
  }
}

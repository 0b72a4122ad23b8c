/* The page: a token is selected, and of attention a layer and a head; everything else follows. */

const THEMES = ["auto", "light", "dark"];
const byId = (id) => document.getElementById(id);
const escape = (text) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);
const blanks = (text) => escape(text.replaceAll(" ", "␣")) || "∅";
const percent = (share) => (share > 0 && share < 0.005 ? "<1%" : `${Math.round(100 * share)}%`);

class Page {
  constructor(data) {
    this.data = data;
    this.tokens = data.tokens.map(({ text }) => text);
    this.source = data.source.map(({ text }) => text);
    this.steps = new Map(data.steps.map((step) => [step.index, step]));
    this.layers = data.attention.map((stream) => new Attention(stream));
    this.selected = data.steps.length ? data.steps[0].index : data.tokens.length - 1;
    this.layer = Math.max(0, this.layers.length - 1);
    this.head = MEAN;
    this.hovered = null;
    this.map = new HeatMap(byId("heat"), {
      rows: this.tokens,
      columns: this.source,
      onSelect: (row) => this.select(row + 1),
      onHover: (cell) => this.hover(cell),
    });
    const prompt = data.source.length ? `${data.source.length} of the source` : `${data.prompt_tokens} of the prompt`;
    byId("about").textContent = `${data.steps.length} new tokens behind ${prompt}`;
    this.makeText();
    this.makeControls();
    this.setTheme(this.remembered() || "auto");
    window.addEventListener("resize", () => this.render());
    document.addEventListener("keydown", (event) => this.press(event));
  }

  /* The row of the map that a token was chosen from: what was read before it. */
  get row() {
    return Math.max(0, Math.min(this.selected - 1, (this.layers[0]?.seen.length ?? this.tokens.length) - 1));
  }

  makeText() {
    const kind = (i) => (this.steps.has(i) ? "new" : "given");
    byId("text").innerHTML = this.tokens.map((text, i) => {
      const lines = text.includes("↵") ? "<br>" : "";
      const step = this.steps.get(i), title = step ? `${percent(step.probability)}, ${step.entropy_bits.toFixed(1)} bits` : "given";
      return `<span role="option" class="${kind(i)}" data-token="${i}" title="${title}">${escape(text) || "∅"}</span>${lines}`;
    }).join("");
    byId("text").addEventListener("click", ({ target }) => target.dataset.token && this.select(+target.dataset.token));
  }

  makeControls() {
    byId("layer").innerHTML = this.layers.map(({ name }, i) => `<option value="${i}">${escape(name)}</option>`).join("");
    byId("layer").addEventListener("change", ({ target }) => this.show(+target.value, this.head));
    byId("heads").addEventListener("click", ({ target }) => target.dataset.head && this.show(this.layer, +target.dataset.head));
    byId("looks").addEventListener("click", ({ target }) => {
      const cell = target.closest("button");
      if (cell) this.show(+cell.dataset.layer, +cell.dataset.head);
    });
    byId("theme").addEventListener("click", () => this.nextTheme());
    byId("help").addEventListener("click", () => byId("keys").showModal());
    const has = this.layers.length > 0;
    byId("none").hidden = has;
    for (const id of ["controls", "map", "cell", "looks-title", "looks-room"]) byId(id).hidden = !has;
    document.body.classList.toggle("plain", !has);
    document.body.classList.toggle("numbers", this.data.tokens.every(({ id, text }) => text === String(id)));
  }

  /* ---- what a person does ---- */

  select(token) {
    this.selected = Math.max(0, Math.min(token, this.tokens.length - 1));
    this.render();
    if (this.layers.length) this.map.reveal(this.row);
  }

  show(layer, head) {
    this.layer = Math.max(0, Math.min(layer, this.layers.length - 1));
    this.head = Math.max(MEAN, Math.min(head, this.layers[this.layer].heads - 1));
    this.render();
  }

  hover(cell) {
    const before = JSON.stringify(this.hovered);
    this.hovered = cell;
    if (JSON.stringify(cell) !== before) this.renderMap();
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    if (event.target.tagName === "SELECT" && event.key.startsWith("Arrow")) return;
    const has = this.layers.length > 0;
    const actions = {
      ArrowLeft: () => this.select(this.selected - 1),
      ArrowRight: () => this.select(this.selected + 1),
      Home: () => this.select(0),
      End: () => this.select(this.tokens.length - 1),
      ArrowUp: () => has && this.show(this.layer - 1, this.head),
      ArrowDown: () => has && this.show(this.layer + 1, this.head),
      "[": () => has && this.show(this.layer, this.head - 1),
      "]": () => has && this.show(this.layer, this.head + 1),
      m: () => has && this.show(this.layer, MEAN),
      t: () => this.nextTheme(),
      "?": () => byId("keys").showModal(),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  remembered() {
    try { return localStorage.getItem("systolic.trace.theme"); } catch { return null; }
  }

  nextTheme() {
    this.setTheme(THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length]);
    try { localStorage.setItem("systolic.trace.theme", this.theme); } catch { /* files may have no storage */ }
  }

  setTheme(theme) {
    this.theme = theme;
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = { auto: "◐", light: "☀", dark: "☾" }[theme];
    byId("theme").title = byId("theme").ariaLabel = `Theme: ${theme} (t)`;
    this.render();
  }

  /* ---- what it sees ---- */

  render() {
    this.renderText();
    this.renderStep();
    if (this.layers.length) {
      this.renderControls();
      this.renderMap();
      this.renderLooks();
    }
  }

  renderText() {
    const attention = this.layers[this.layer], weights = new Map();
    if (attention && !attention.isOfSource) {
      const first = attention.first(this.row);
      attention.row(this.row, this.head).forEach((weight, i) => weights.set(first + i, weight));
    }
    for (const span of byId("text").querySelectorAll("span")) {
      const i = +span.dataset.token, isSelected = i === this.selected;
      span.setAttribute("aria-selected", isSelected);
      span.style.setProperty("--weight", `${Math.round(100 * Math.sqrt(weights.get(i) ?? 0))}%`);
      span.classList.toggle("later", i > this.selected);
      if (isSelected) span.scrollIntoView({ block: "nearest" });
    }
  }

  renderStep() {
    const step = this.steps.get(this.selected), text = blanks(this.tokens[this.selected]);
    if (!step) {
      byId("step-title").innerHTML = `<code>${text}</code> was given`;
      byId("candidates").innerHTML = "";
      return;
    }
    byId("step-title").innerHTML = `<code>${text}</code> ${percent(step.probability)} <small>token ${step.index}; the entropy was ${step.entropy_bits.toFixed(1)} bits</small>`;
    const shown = step.candidates.some(({ id }) => id === step.token.id) ? step.candidates : [...step.candidates, { ...step.token, probability: step.probability }];
    byId("candidates").innerHTML = shown.map(({ id, text, probability }) => `<tr class="${id === step.token.id ? "chosen" : ""}"><th scope="row"><code>${blanks(text.replaceAll("\n", "↵"))}</code></th><td class="bar"><i style="width:${100 * probability}%"></i></td><td>${percent(probability)}</td></tr>`).join("");
  }

  renderControls() {
    const { heads } = this.layers[this.layer];
    byId("layer").value = this.layer;
    const numbers = [MEAN, ...Array(heads).keys()];
    byId("heads").innerHTML = numbers.map((head) => `<button data-head="${head}" aria-pressed="${head === this.head}">${head === MEAN ? "mean" : head}</button>`).join("");
  }

  renderMap() {
    const attention = this.layers[this.layer], names = attention.isOfSource ? this.source : this.tokens;
    this.map.draw(attention, this.head, this.row, this.hovered);
    const which = this.head === MEAN ? "mean of all heads" : `head ${this.head}`;
    byId("heat").ariaLabel = `Attention of ${attention.name}, ${which}`;
    const cell = this.hovered ?? { row: this.row, column: attention.top(this.row, this.head)[0] };
    const weight = attention.row(cell.row, this.head)[cell.column - attention.first(cell.row)];
    const seen = weight === undefined ? "does not see" : `${(100 * weight).toFixed(1)}% on`;
    byId("cell").innerHTML = `<code>${blanks(this.tokens[cell.row])}</code> (${cell.row}) ${seen} <code>${blanks(names[cell.column])}</code> (${cell.column})`;
  }

  renderLooks() {
    const most = Math.max(...this.layers.map(({ heads }) => heads));
    const head = `<tr><td></td>${[...Array(most).keys()].map((i) => `<th scope="col">${i}</th>`).join("")}</tr>`;
    byId("looks").innerHTML = head + this.layers.map((attention, layer) => {
      const names = attention.isOfSource ? this.source : this.tokens;
      const cells = [...Array(attention.heads).keys()].map((i) => {
        const [at, weight] = attention.top(this.row, i), text = blanks(names[at]), isShown = layer === this.layer && i === this.head;
        return `<td><button class="${weight > 0.8 ? "hot" : weight > 0.45 ? "warm" : ""}" data-layer="${layer}" data-head="${i}" aria-pressed="${isShown}" style="--weight:${Math.round(100 * weight)}%" title="${escape(attention.name)} head ${i}: ${percent(weight)} on ${text} (${at})">${text}</button></td>`;
      });
      return `<tr><th scope="row" title="${escape(attention.name)}">${escape(attention.name.replace(/\.(attn\.)?probs$/, ""))}</th>${cells.join("")}</tr>`;
    }).join("");
  }
}

const page = new Page(JSON.parse(byId("data").textContent));
document.documentElement.dataset.ready = "true";

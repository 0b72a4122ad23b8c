/* The panel at the side: what is selected, the states, and what each pass did. */

class Panel {
  constructor(viewer, element) {
    Object.assign(this, { viewer, element, tab: "selection" });
    this.body = element.querySelector(".body");
    this.tabs = [...element.querySelectorAll("[role=tab]")];
    for (const tab of this.tabs) tab.addEventListener("click", () => this.show(tab.dataset.tab));
    element.querySelector("[role=tablist]").addEventListener("keydown", (event) => this.onKey(event));
    this.body.addEventListener("click", (event) => this.onClick(event));
  }

  onKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = this.tabs.findIndex((tab) => tab.dataset.tab === this.tab);
    const next = this.tabs[(at + step + this.tabs.length) % this.tabs.length];
    this.show(next.dataset.tab);
    next.focus();
  }

  onClick(event) {
    const link = event.target.closest("[data-go]");
    if (link) {
      const pane = this.viewer.panes.get(link.dataset.in) || this.viewer.active;
      this.viewer.goTo(link.dataset.go, pane);
    }
    const pass = event.target.closest("[data-pass]");
    if (pass) this.viewer.setPass(+pass.dataset.pass);
    const copied = event.target.closest("[data-copy]");
    if (copied) {
      navigator.clipboard?.writeText(copied.dataset.copy).catch(() => {});
      copied.textContent = "copied";
    }
    if (event.target.closest("[data-trace]")) this.viewer.trace(this.viewer.active);
  }

  show(tab) {
    this.tab = tab;
    this.render();
    this.body.scrollTop = 0;
  }

  focus() {
    this.body.focus();
  }

  render() {
    for (const tab of this.tabs) {
      tab.setAttribute("aria-selected", tab.dataset.tab === this.tab);
      tab.tabIndex = tab.dataset.tab === this.tab ? 0 : -1;
    }
    const make = { selection: () => this.selection(), states: () => this.states(), passes: () => this.passes() };
    this.body.innerHTML = make[this.tab]();
    this.body.setAttribute("aria-labelledby", `tab-${this.tab}`);
  }

  /* ---- what is selected ---- */

  selection() {
    const { viewer } = this, pane = viewer.active, key = viewer.selected;
    const owner = key && [pane, ...viewer.panes.values()].find((each) => each.hierarchy.find(key));
    const view = key && pane.byKey?.get(key);
    if (view?.range) return this.box(view.label, view.nodes, pane, view.range);
    if (!owner) return this.overview(pane);
    const item = owner.hierarchy.find(key);
    return item instanceof Box ? this.box(item.label, item.nodes, owner, item.kind === "fold" ? item.children : null, item) : this.node(item, owner);
  }

  overview(pane) {
    const { data } = this.viewer, graph = pane.hierarchy.graph;
    const rows = [
      ["stage", pane.stage.title],
      ["nodes", pane.stage.about(graph)],
      ["inputs", graph.inputs.filter((node) => !isState(node)).map((node) => link(node, pane)).join(", ")],
      ["outputs", [...graph.outputs].filter(([name]) => !name.startsWith("state.")).map(([, node]) => link(node, pane)).join(", ")],
      ["states", data.states.length ? `${count(data.states.length)}, ${bytes(sum(data.states, "bytes_per_token"))} for each position` : "none"],
      ["capacity", `${count(data.capacity)} positions`],
    ];
    return `<h3>${escape(data.model)}</h3>${table(rows)}${this.costs(pane.hierarchy.root.nodes, pane)}
      <h4>causality</h4><pre class="proof">${escape(data.certificate)}</pre>
      <p class="muted">Select a box or a node to see what it is. Press <kbd>?</kbd> for the keys.</p>`;
  }

  box(label, nodes, pane, units, box = null) {
    const about = summary(nodes, pane.hierarchy.graph);
    const rows = [["stage", pane.stage.title], ["nodes", count(about.nodes)], ["weights", bytes(about.weights)]];
    if (units) rows.splice(1, 0, ["alike", `${units.length} layers, drawn once`]);
    if (box && box.kind !== "loop") rows.unshift(["scope", `<code>${escape(box.key.slice(0, -1))}</code>`]);
    if (box?.loop) rows.push(["loop", `${link(box.loop, pane)} <code>${escape(box.loop.type)}</code>`]);
    const kept = about.kept.map(({ text, kind }) => `<span class="chip ${kind}">${escape(text)}</span>`).join(" ");
    const { added, removed, changed } = about.changes;
    if (added + removed + changed) rows.push(["this pass", `+${added} −${removed} ~${changed}`]);
    const hint = units ? '<p class="muted"><kbd>Enter</kbd> opens one layer, <kbd>[</kbd> <kbd>]</kbd> step to the next, <kbd>u</kbd> shows all.</p>' : "";
    return `<h3>${escape(label)}</h3>${table(rows)}${hint}${kept ? `<h4>remembers</h4><p>${kept}</p>` : ""}${this.costs(nodes, pane)}`;
  }

  /** Costs are those of one position of the graph per token, and of one run of a program. */
  costOf(pane) {
    return pane.stage.name === "passes" ? `cost of one position, at the last of ${count(this.viewer.data.capacity)}` : "cost of one run";
  }

  /** Sums of the cost, and the nodes that cost most. */
  costs(nodes, pane) {
    const total = nodes.reduce((all, node) => nodeCost(node).map((value, i) => all[i] + value), [0, 0, 0, 0, 0]);
    const whole = HEATS.map(([, index]) => pane.totalCost(index));
    const rows = HEATS.map(([name, index], i) => [name, costText(total[index], whole[i], index)]);
    const measure = this.viewer.heat ?? 0, most = mostCostly(nodes, measure);
    const list = most.map(({ node, times, value }) => `<tr><td>${link(node, pane, 2)}${times > 1 ? ` <span class="times">× ${times}</span>` : ""}</td><td class="number">${whole[HEATS.findIndex(([, i]) => i === measure)] ? escape(percent(value / pane.totalCost(measure))) : ""}</td></tr>`);
    const name = HEATS.find(([, index]) => index === measure)[0];
    return `<h4>${this.costOf(pane)}</h4>${table(rows)}${list.length ? `<h4>most ${name}</h4><table>${list.join("")}</table>` : ""}`;
  }

  node(node, pane) {
    const reads = node.reads.map((edge) => `<li>${edge.source ? `${link(edge.source, pane)} ${accessChip(edge)} <code>${escape(edge.source.type)}</code>` : `<code>${escape(edge.literal)}</code>`}</li>`);
    const users = node.users.map((edge) => `<li>${link(edge.user, pane)} ${accessChip(edge)} <span class="muted">${escape(edge.user.op)}</span></li>`);
    const former = (node.formerReads || []).map((edge) => `<li>${link(edge.source, pane)} <span class="chip removed">removed</span></li>`);
    const rows = [
      ["op", `<span class="op ${opClass(node.op)}">${escape(node.op)}</span>`],
      ["type", `<code>${escape(node.type)}</code>`],
      ["stage", pane.stage.title],
      node.scope && ["scope", `<a href="#" data-go="${escape(node.scope)}/" data-in="${pane.stage.name}">${escape(node.scope)}</a>`],
      node.clock && ["clock", escape(node.clock)],
      node.op !== "input" && ["source line", node.location ? `<code>${escape(node.location)}</code>` : '<span class="muted">made by the compiler</span>'],
      node.change && ["this pass", `<span class="chip ${node.change}">${node.change}</span>`],
      ...node.params.map(([key, value]) => [key, `<code>${escape(clip(value, 200))}</code>`]),
    ];
    const cost = nodeCost(node), costs = HEATS.filter(([, index]) => cost[index]).map(([name, index]) => [name, costText(cost[index], pane.totalCost(index), index)]);
    costs.push(["bytes of its value", bytes(node.cost[3])]);
    const traced = this.viewer.traced;
    return `<h3>${escape(shortName(node))} <button class="small" data-copy="${escape(node.name)}" title="Copy the name">copy</button></h3>
      <p class="name"><code>${escape(node.name)}</code></p>${table(rows)}
      ${this.state(node)}
      <h4>reads</h4><ul>${reads.join("") || '<li class="muted">nothing</li>'}${former.join("")}</ul>
      <h4>read by ${users.length ? count(users.length) : ""}</h4><ul>${users.slice(0, 40).join("") || ""}${users.length > 40 ? `<li class="muted">… ${users.length - 40} more</li>` : ""}${node.outputs.map((name) => `<li>output <code>${escape(name)}</code></li>`).join("")}</ul>
      <h4>${this.costOf(pane)}</h4>${table(costs)}
      ${this.elsewhere(node, pane)}
      <h4>depends on</h4>${traced ? this.dependencies(traced, pane) : ""}<button class="small" data-trace="1">${traced ? "hide what reaches it" : "show what reaches it"} <kbd>t</kbd></button>`;
  }

  dependencies({ nodes }, pane) {
    const all = [...nodes], named = (test) => all.filter(test);
    const rows = [
      ["inputs", named((node) => node.op === "input" && !isState(node) && !node.inside).map((node) => link(node, pane)).join(", ") || "none"],
      ["states", count(named((node) => isState(node) || node.state).length)],
      ["weights", count(named((node) => node.op === "parameter").length)],
      ["nodes", count(named((node) => node.op !== "parameter").length)],
    ];
    return table(rows);
  }

  state(node) {
    const { state } = node;
    if (!state) return "";
    return `<h4>kept as a state</h4>${table([
      ["kind", escape(state.kind)],
      ["buffer", `<code>${escape(state.type)}</code>`],
      ["bytes per token", count(state.bytes_per_token)],
      ["bytes", bytes(state.bytes)],
      ["why", escape(state.reason)],
    ])}`;
  }

  /** The nodes of the same stream in the other stages. */
  elsewhere(node, pane) {
    const rows = [];
    for (const other of this.viewer.panes.values()) {
      const found = (this.viewer.streams(other.hierarchy).get(streamName(node.name)) || []).filter((each) => each !== node);
      if (found.length) rows.push([other.stage.title, found.slice(0, 6).map((each) => `${link(each, other)} <span class="muted">${escape(isState(each) ? "state" : each.op)}</span><br><code>${escape(each.type)}</code>`).join("<br>")]);
    }
    return rows.length ? `<h4>the same stream</h4>${table(rows)}` : "";
  }

  /* ---- states and passes ---- */

  states() {
    const { states } = this.viewer.data;
    if (!states.length) return '<h3>states</h3><p class="muted">Nothing is kept from position to position.</p>';
    const groups = new Map();
    for (const state of states) {
      const pattern = state.name.replace(/(^|\.)\d+(?=\.)/, "$1{i}"), key = [pattern, state.kind, state.value, state.reason].join("|");
      if (!groups.has(key)) groups.set(key, { pattern, state, all: [] });
      groups.get(key).all.push(state);
    }
    const cards = [...groups.values()].map(({ pattern, state, all }) => {
      const target = this.stateTarget(state);
      return `<div class="card"><a href="#" data-go="${escape(target)}"><b>${escape(all.length > 1 ? pattern : state.name)}</b></a> ${all.length > 1 ? `<span class="times">× ${all.length}</span>` : ""}
        <span class="chip state">${escape(state.kind)}</span>${table([
          ["buffer", `<code>${escape(state.type)}</code>`],
          ["read", `<code>[${escape(state.access)}]</code>`],
          ["bytes per token", `${count(state.bytes_per_token)}${all.length > 1 ? ` each, ${count(sum(all, "bytes_per_token"))} in all` : ""}`],
          ["bytes", `${bytes(state.bytes)}${all.length > 1 ? ` each, ${bytes(sum(all, "bytes"))} in all` : ""}`],
        ])}<p class="reason">${escape(state.reason)}</p></div>`;
    });
    return `<h3>states</h3>${table([
      ["states", count(states.length)],
      ["each position adds", bytes(sum(states, "bytes_per_token"))],
      ["in all", bytes(sum(states, "bytes"))],
    ])}${cards.join("")}`;
  }

  stateTarget(state) {
    for (const name of [state.name, state.name.replace(/\.\w+$/, ""), `state.${state.name}`]) {
      if (this.viewer.anyGraph((hierarchy) => hierarchy.graph.byName.has(name))) return name;
    }
    return state.name;
  }

  passes() {
    const { passes, changes } = this.viewer.data;
    const cards = passes.map((pass, i) => {
      const change = changes[i - 1], isShown = i === this.viewer.pass;
      const rows = [["nodes", change ? arrow(change.nodes) : count(changes[0].nodes[0])]];
      if (!change) rows.push(["literals", count(changes[0].literals[0])]);
      else {
        rows.push(["changes", `<span class="chip added">+${count(change.added)}</span> <span class="chip removed">−${count(change.removed)}</span> <span class="chip changed">~${count(change.changed)}</span>`]);
        rows.push(["literals", arrow(change.literals)], ["operations", arrow(change.work)]);
        rows.push(["took", `${(1000 * pass.seconds).toFixed(1)} ms`]);
      }
      const text = change?.text ? `<pre class="diff">${change.text.split("\n").map(diffLine).join("")}</pre>` : "";
      return `<div class="card${isShown ? " shown" : ""}"><button class="link" data-pass="${i}"><b>${escape(pass.name)}</b></button>${isShown ? ' <span class="chip">shown</span>' : ""}${table(rows)}${text}</div>`;
    });
    return `<h3>passes</h3><p class="muted">The slider above shows the graph after each pass: what was <span class="chip added">added</span>, <span class="chip changed">changed</span> or <span class="chip removed">removed</span> by it.</p>${cards.join("")}`;
  }
}

/** A node to click on: its short name, or the last `words` of its whole one. */
function link(node, pane, words = 0) {
  const text = words ? lastWords(node.name, words) : shortName(node);
  return `<a href="#" data-go="${escape(node.name)}" data-in="${escape(pane.stage.name)}">${escape(text)}</a>`;
}

function accessChip({ access, kind }) {
  return kind === "now" || kind === "state" ? "" : `<span class="chip ${kind}">${escape(access)}</span>`;
}

function table(rows) {
  return `<table>${rows.filter(Boolean).map(([name, value]) => `<tr><th scope="row">${name}</th><td>${value}</td></tr>`).join("")}</table>`;
}

function sum(records, key) {
  return records.reduce((total, record) => total + record[key], 0);
}

function costText(value, whole, index) {
  const shown = index >= 2 ? bytes(value) : short(value);
  return `${shown}${whole && value !== whole ? ` <span class="muted">${escape(percent(value / whole))}</span>` : ""}`;
}

function arrow([before, after]) {
  return before === after ? count(after) : `${count(before)} → ${count(after)}`;
}

function diffLine(line) {
  const mark = line.trim()[0];
  const name = mark === "+" ? "added" : mark === "-" ? "removed" : "";
  return `<span class="${name}">${escape(line)}\n</span>`;
}

/** The nodes that cost most; those of layers that are alike are summed. */
function mostCostly(nodes, measure) {
  const groups = new Map();
  for (const node of nodes) {
    const value = nodeCost(node)[measure];
    if (!value) continue;
    const key = node.name.replace(/(^|\.)\d+(?=\.)/, "$1{i}");
    const group = groups.get(key) || { node, times: 0, value: 0 };
    group.times++;
    group.value += value;
    groups.set(key, group);
  }
  return [...groups.values()].sort((a, b) => b.value - a.value).slice(0, 6);
}

/* The SVG of boxes, nodes, ports and routes, as text. */

let identities = 0;

function drawLines(lines, x, y) {
  return lines.map((line, i) => {
    const spans = line.map(({ text, font, class: name = "" }, j) => `<tspan class="${font} ${name}"${j ? ' dx="6"' : ""}>${escape(text)}</tspan>`);
    return `<text x="${x}" y="${y + i * LINE}">${spans.join("")}</text>`;
  }).join("");
}

function sign(view, isOpen) {
  const x = view.x + view.width - 20, y = view.y + 5;
  const cross = isOpen ? "" : `<path d="M${x + 7.5} ${y + 4}v7"/>`;
  return `<g class="sign" data-act="toggle" data-of="${escape(view.key)}"><rect x="${x}" y="${y}" width="15" height="15" rx="4"/><path d="M${x + 4} ${y + 7.5}h7"/>${cross}</g>`;
}

function drawItem(view, pane) {
  const { item, x, y, width, height } = view, isBox = item instanceof Box;
  const names = ["item", isBox ? `box ${item.kind}` : `node ${opClass(item.op)}${isState(item) ? " state" : ""}`];
  const change = isBox ? null : item.change;
  if (change) names.push(change);
  const heat = pane.heatTo ? pane.heat(view) / pane.heatTo : 0;
  const style = heat ? ` style="--heat:${(100 * Math.sqrt(heat)).toFixed(1)}%"` : "";
  if (heat) names.push("hot");
  const units = unitsOf(view);
  const cards = units ? `<rect class="card" x="${x + 8}" y="${y + 8}" width="${width}" height="${height}" rx="7"/><rect class="card" x="${x + 4}" y="${y + 4}" width="${width}" height="${height}" rx="7"/>` : "";
  const shape = item.op === "input" ? `rx="${Math.min(height / 2, 18)}"` : 'rx="7"';
  const strip = isBox || item.op === "input" ? "" : `<path class="strip" d="M${x + 1} ${y + 7}a6 6 0 0 1 3 -5v${height - 4}a6 6 0 0 1 -3 -5z"/>`;
  return `<g class="${names.join(" ")}" role="treeitem" id="item-${identities++}" data-key="${escape(view.key)}" aria-label="${escape(spoken(view))}"${isBox ? ' aria-expanded="false"' : ""}${style}>
    ${cards}<rect class="body" x="${x}" y="${y}" width="${width}" height="${height}" ${shape}/>${strip}
    ${drawLines(view.lines, x + 11, y + 18)}${isBox ? sign(view, false) : ""}${drawBadges(view, pane, heat)}</g>`;
}

/** Small texts at the border: the share of the cost, what a pass changed, the outputs that a node is. */
function drawBadges(view, pane, heat) {
  const { item, x, y, width, height } = view, texts = [];
  if (heat && pane.share(view) >= 5e-5) texts.push([percent(pane.share(view)), "share"]);
  if (item instanceof Box) {
    const { added, removed, changed } = view.about.changes;
    if (added) texts.push([`+${added}`, "added"]);
    if (removed) texts.push([`−${removed}`, "removed"]);
    if (changed) texts.push([`~${changed}`, "changed"]);
  } else {
    for (const name of item.outputs) texts.push([name.startsWith("state.") ? "→ state" : `→ ${name}`, name.startsWith("state.") ? "state" : "output"]);
  }
  let right = x + width - 6;
  return texts.slice(0, 4).map(([text, name]) => {
    const size = textWidth(text, "mono") + 10;
    right -= size + 3;
    return `<g class="badge ${name}"><rect x="${right}" y="${y + height - 6}" width="${size}" height="14" rx="7"/><text x="${right + size / 2}" y="${y + height + 4.5}">${escape(text)}</text></g>`;
  }).join("");
}

function percent(part) {
  if (part && part < 5e-5) return "<0.01%";
  return `${(100 * part).toFixed(part >= 0.0995 ? 0 : part >= 0.00995 ? 1 : 2)}%`;
}

function drawContainer(view, pane) {
  const { item, x, y, width, height } = view, label = item.label;
  const depth = item.depth % 2 ? "odd" : "even";
  const end = x + 12 + textWidth(label, "bold");
  const times = item.kind === "fold" ? `<text x="${end + 8}" y="${y + 18}" class="plain times">× ${item.children.length}</text>` : "";
  const loop = item.kind === "loop" ? `<text x="${end + 8}" y="${y + 18}" class="plain muted">one position of the loop</text>` : "";
  return `<g class="item container ${item.kind} ${depth}" role="treeitem" id="item-${identities++}" data-key="${escape(view.key)}" aria-expanded="true" aria-label="${escape(spoken(view))}">
    <rect class="body" x="${x}" y="${y}" width="${width}" height="${height}" rx="10"/>
    <path class="rule" d="M${x} ${y + HEADER}h${width}"/>
    <text x="${x + 12}" y="${y + 18}" class="bold">${escape(label)}</text>${times}${loop}${item.kind === "fold" ? stepper(view, pane) : ""}${sign(view, true)}</g>`;
}

/** Which unit of a fold is shown, and how to see another or all. */
function stepper(view, pane) {
  const shown = pane.viewer.folding.unitOf(view.item), of = escape(view.key), y = view.y + 4;
  let x = view.x + view.width - 30;
  const button = (text, act, width, isOn = false) => {
    x -= width + 4;
    return `<g class="step${isOn ? " on" : ""}" data-act="${act}" data-of="${of}"><rect x="${x}" y="${y}" width="${width}" height="18" rx="5"/><text x="${x + width / 2}" y="${y + 13}">${text}</text></g>`;
  };
  const all = button("all", "all", 30, shown === "all");
  return all + (shown === "all" ? "" : button("›", "next", 20) + button(`${shown}`, "first", 34, true) + button("‹", "previous", 20));
}

function drawPort(port) {
  const { x, y, width, height, text, kind, end } = port;
  if (!text) return `<circle class="port ${kind} ${end}" cx="${x + 4}" cy="${y + 4}" r="3"><title>${escape(port.stream.name)}</title></circle>`;
  return `<g class="port ${kind} ${end}" data-key="${escape(port.stream.name)}"><rect x="${x}" y="${y}" width="${width}" height="${height}" rx="8"/><text x="${x + width / 2}" y="${y + 11.5}">${escape(text)}</text></g>`;
}

function drawRoute(route, index) {
  const head = route.isStub || route.to.end ? "" : arrowHead(route);
  return `<g class="route ${route.kind}" data-route="${index}"><title>${escape(routeTitle(route))}</title><path class="hit" d="${curve(route.points)}"/><path class="line" d="${curve(route.points)}"/>${head}</g>`;
}

function routeTitle(route) {
  const streams = [...route.streams];
  const shown = streams.slice(0, 4).map((node) => `${node.name}: ${node.type}`).join("\n");
  const accesses = [...route.accesses].join(", ");
  return `${shown}${streams.length > 4 ? `\n… ${streams.length - 4} more` : ""}${accesses ? `\nreads ${accesses}` : ""}`;
}

/** A line through the points that is vertical at each of them. */
function curve(points) {
  let path = `M${round(points[0].x)} ${round(points[0].y)}`;
  for (let i = 1; i < points.length; i++) {
    const [a, b] = [points[i - 1], points[i]];
    if (Math.abs(a.x - b.x) < 0.5) path += `L${round(b.x)} ${round(b.y)}`;
    else {
      const half = (a.y + b.y) / 2;
      path += `C${round(a.x)} ${round(half)} ${round(b.x)} ${round(half)} ${round(b.x)} ${round(b.y)}`;
    }
  }
  return path;
}

function round(number) {
  return Math.round(number * 10) / 10;
}

function arrowHead(route) {
  const { x, y } = route.points.at(-1), back = isUpward(route) ? 7 : -7;
  return `<path class="head" d="M${round(x)} ${round(y)}l-3.5 ${back}h7z"/>`;
}

function isUpward({ points }) {
  return points.at(-1).y < points[0].y;
}

function drawRouteLabel(route) {
  const accesses = [...route.accesses].filter((access) => access !== "t");
  if (!accesses.length) return "";
  const text = accesses.length > 2 ? `${accesses.length} accesses` : accesses.join(" "), size = textWidth(text, "mono") + 8;
  const end = route.points.at(-1), { x } = end, y = isUpward(route) ? end.y + 18 : end.y - (route.to.end ? 8 : 20);
  return `<g class="access-label ${route.kind}"><rect x="${x - size / 2}" y="${y - 8}" width="${size}" height="14" rx="7"/><text x="${x}" y="${y + 2.5}">${escape(text)}</text></g>`;
}

/** What a screen reader says of a box or node. */
function spoken(view) {
  if (!(view.item instanceof Box)) {
    const { item } = view;
    return `${shortName(item)}, ${item.op}, ${item.type}${item.change ? `, ${item.change}` : ""}`;
  }
  const units = unitsOf(view);
  return `${view.label || view.item.label}${units ? `, ${units.length} layers that are alike` : ""}, ${count(view.about.nodes)} nodes`;
}

/* Reads the folded text that `systolic graph` prints: the page holds its graphs in that form.

   A graph is {name, nodes, byName, inputs, outputs, folds}; a node is {id, name, op, type, params,
   reads, users, scope, clock, location, cost, outputs}. `reads` are {source, access, kind}, or
   {literal} where a constant is written in place. `folds` are {prefix, first, last, period}. */

const HEAD = /^repeat ([^\s,]+)\.(\d+)-(\d+)(?: by (\d+))? as (\w+)(.*)$/;
const CARRIED = /, (\w+) = ("(?:[^"\\]|\\.)*"|[^\s,"]+) then ("(?:[^"\\]|\\.)*"|[^\s,"]+)/g;
const DEFINITION = /^ *("(?:[^"\\]|\\.)*"|\S+): (\([^)]*\)|\w+\[[^\]]*\]) = (\w+)\(/;
const DECLARATION = /^ *(input|param) ("(?:[^"\\]|\\.)*"|\S+): (\w+\[[^\]]*\])(?: @(\w+))?/;
const FEEDBACK = /^feedback ("(?:[^"\\]|\\.)*"|\S+) <- ("(?:[^"\\]|\\.)*"|[^\s["]+)/;
const OUTPUT = /^output ("(?:[^"\\]|\\.)*"|\S+) = ("(?:[^"\\]|\\.)*"|\S+)/;
const OPERAND = /^("(?:[^"\\]|\\.)*"|[^\s["]+)(?:\[([^\]]*)\])?$/;
const LITERAL = /^(?:-?\d|-?inf\b|nan\b|true\b|false\b)/;
const COST = /\bcost (\d+),(\d+),(\d+),(\d+)/;

function accessKind(access) {
  if (access === "t") return "now";
  if (access === ":") return "whole";
  if (access === "0:t") return "prefix";
  return access.includes(":") ? "window" : "delay";
}

/** The text with every repeat written out, and the repeats that hold nodes. */
function writeOut(text) {
  const lines = text.split("\n"), written = [], folds = new Map();
  for (let at = 0; at < lines.length; ) {
    const head = HEAD.exec(lines[at]);
    if (!head) {
      written.push(lines[at++]);
      continue;
    }
    const body = [];
    for (at++; at < lines.length && (!lines[at].trim() || lines[at][0] === " "); at++) {
      body.push(lines[at].replace(/^ {2}/, ""));
    }
    const [, prefix, first, last, by, index] = head;
    const fold = { prefix, first: +first, last: +last, period: +(by || 1) };
    const isSection = body.some((line) => line.startsWith("graph "));
    if (!isSection && body.some((line) => DEFINITION.test(line))) folds.set(`${prefix}.${first}`, fold);
    const carried = [...head[6].matchAll(CARRIED)].map((match) => match.slice(1));
    const number = new RegExp(`\\{${index}([+-]\\d+)?\\}`, "g");
    for (let base = fold.first; base <= fold.last; base += fold.period) {
      for (const line of body) {
        let copy = line;
        for (const [name, start, then] of carried) {
          if (copy.includes(`{${name}}`)) copy = copy.replaceAll(`{${name}}`, base === fold.first ? start : then);
        }
        written.push(copy.includes(`{${index}`) ? copy.replace(number, (_, offset) => base + +(offset || 0)) : copy);
      }
    }
  }
  return { lines: written, folds: [...folds.values()] };
}

/** What stands between the parenthesis that opens at `start` and its partner, cut at commas. */
function readArguments(line, start) {
  const found = [];
  let depth = 0, from = start, at = start;
  for (; at < line.length; at++) {
    const character = line[at];
    if (character === '"') {
      for (at++; line[at] !== '"'; at++) if (line[at] === "\\") at++;
    } else if ("([{".includes(character)) depth++;
    else if (character === ")" && depth === 0) break;
    else if (")]}".includes(character)) depth--;
    else if (character === "," && depth === 0) {
      found.push(line.slice(from, at).trim());
      from = at + 1;
    }
  }
  if (line.slice(from, at).trim()) found.push(line.slice(from, at).trim());
  return [found, at + 1];
}

class Section {
  constructor(name) {
    Object.assign(this, { name, nodes: [], byName: new Map(), inputs: [], outputs: new Map(), folds: [] });
    this.feedback = [];
    this.scope = "";
  }

  /** A name as it is written under the current scope. */
  resolve(shown) {
    if (shown[0] === '"') return JSON.parse(shown);
    return shown[0] === "." ? this.scope + shown : shown;
  }

  add(name, op, type, line, from) {
    const hash = line.indexOf("# ", from);
    const comment = hash < 0 ? "" : line.slice(hash + 2);
    const cost = COST.exec(comment);
    const node = {
      id: this.nodes.length, name, op, type, params: [], reads: [], users: [], outputs: [], clock: null,
      scope: line[0] === " " ? this.scope : "",
      location: comment.split(" | ").find((part) => !part.startsWith("cost ")) || "",
      cost: cost ? cost.slice(1).map(Number) : [0, 0, 0, 0],
    };
    this.nodes.push(node);
    this.byName.set(name, node);
    return node;
  }

  read(line) {
    if (line.startsWith("scope ")) {
      this.scope = this.resolve(line.slice(6).trim());
      return;
    }
    if (line && line[0] !== " ") this.scope = "";
    let match;
    if ((match = DEFINITION.exec(line))) {
      const [given, end] = readArguments(line, match[0].length);
      const node = this.add(this.resolve(match[1]), match[3], match[2], line, end);
      for (const argument of given) this.readArgument(node, argument);
    } else if ((match = DECLARATION.exec(line))) {
      const op = match[1] === "param" ? "parameter" : "input";
      const node = this.add(this.resolve(match[2]), op, match[3], line, match[0].length);
      node.clock = match[4] || null;
      if (op === "input") this.inputs.push(node);
    } else if ((match = FEEDBACK.exec(line))) {
      this.feedback.push([this.resolve(match[1]), this.resolve(match[2])]);
    } else if ((match = OUTPUT.exec(line))) {
      this.outputs.set(this.resolve(match[1]), this.resolve(match[2]));
    }
  }

  readArgument(node, argument) {
    if (/^\w+=/.test(argument)) {
      node.params.push([argument.slice(0, argument.indexOf("=")), argument.slice(argument.indexOf("=") + 1)]);
    } else if (LITERAL.test(argument)) {
      node.reads.push({ literal: argument });
    } else {
      const [, shown, access = "t"] = OPERAND.exec(argument);
      node.reads.push({ source: this.resolve(shown), access, kind: accessKind(access) });
    }
  }

  /** Replaces names by the nodes that they name. */
  link() {
    for (const node of this.nodes) {
      for (const edge of node.reads) {
        if (edge.source === undefined) continue;
        edge.source = this.byName.get(edge.source);
        edge.source.users.push({ user: node, access: edge.access, kind: edge.kind });
      }
    }
    for (const [name, value] of this.outputs) {
      this.outputs.set(name, this.byName.get(value));
      this.byName.get(value).outputs.push(name);
    }
    for (const [previous, value] of this.feedback) {
      const [user, source] = [this.byName.get(previous), this.byName.get(value)];
      user.reads.push({ source, access: "t-1", kind: "feedback" });
      source.users.push({ user, access: "t-1", kind: "feedback" });
    }
    return this;
  }
}

/** The graph that a text holds; bodies of loops are in `bodies` by their labels. */
function readDump(text) {
  const { lines, folds } = writeOut(text);
  const sections = [];
  for (const line of lines) {
    const head = /^graph ("(?:[^"\\]|\\.)*"|\S+)/.exec(line);
    if (head) sections.push(new Section(head[1][0] === '"' ? JSON.parse(head[1]) : head[1]));
    else if (line && line[0] !== "#") sections.at(-1).read(line);
  }
  const [graph, ...bodies] = sections.map((section) => section.link());
  graph.folds = folds;
  graph.bodies = new Map(bodies.map((body) => [body.name, body]));
  return inlineBodies(graph);
}

/** Puts the bodies of loops into the graph; their nodes are `inside` the node of the loop. */
function inlineBodies(graph) {
  for (let at = 0; at < graph.nodes.length; at++) {
    const loop = graph.nodes[at];
    const shown = loop.params.find(([key, value]) => key === "body" && value.startsWith("graph "));
    if (!shown) continue;
    const label = shown[1].slice(6);
    inlineBody(graph, loop, graph.bodies.get(label[0] === '"' ? JSON.parse(label) : label));
  }
  return graph;
}

function inlineBody(graph, loop, body) {
  const copies = new Map();
  for (const node of body.nodes) {
    const copy = { ...node, id: graph.nodes.length, name: `${loop.name}/${node.name}`, inside: loop, scope: "" };
    Object.assign(copy, { reads: [], users: [], outputs: [] });
    graph.nodes.push(copy);
    graph.byName.set(copy.name, copy);
    copies.set(node, copy);
  }
  const connect = (source, user, access, kind) => {
    user.reads.push({ source, access, kind });
    source.users.push({ user, access, kind });
  };
  for (const node of body.nodes) {
    for (const edge of node.reads) {
      if (edge.source) connect(copies.get(edge.source), copies.get(node), edge.access, edge.kind);
      else copies.get(node).reads.push(edge);
    }
  }
  const results = [...body.outputs.values()].map((node) => copies.get(node));
  const carries = +loop.params.find(([key]) => key === "carries")[1];
  loop.inner = body.inputs.map((node) => copies.get(node));
  loop.inner.slice(0, carries).forEach((input, i) => connect(results[i], input, "t-1", "feedback"));
  loop.results = results;
}

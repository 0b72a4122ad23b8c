/* A layered drawing of one level: ranks from the longest paths, few crossings, straight long edges.

   `layered(items, edges)` takes items {width, height, end} (end: "top" or "bottom" for what must be
   first or last) and edges {from, to, fromX, toX} between their indices, where fromX and toX are where
   an edge leaves and enters (from the left of its item; by default the middle). It yields {width,
   height, places: [{x, y}], routes: [[{x, y}, …]]}; a route goes from the item that is read. */

const GAP = { item: 18, passing: 12, rank: 36 };
const SWEEPS = 12;
const MANY = 8; // readers of one stream, which do not all have to stand side by side
const MOST_PASSING = 6000; // points of long edges; a drawing with more routes its longest edges directly

function layered(items, edges) {
  if (!items.length) return { width: 0, height: 0, places: [], routes: [] };
  const directed = withoutCycles(items, edges);
  const ranks = rankItems(items, directed);
  const { slots, chains } = passRanks(items, directed, ranks);
  const rows = orderRows(slots);
  placeAcross(slots, rows);
  return placed(items, edges, directed, slots, rows, chains);
}

/** The edges, turned round where they would close a cycle. */
function withoutCycles(items, edges) {
  const count = items.length, leaving = items.map(() => []);
  edges.forEach((edge, index) => {
    if (edge.from !== edge.to && items[edge.from].end === undefined) leaving[edge.from].push(index);
  });
  const state = new Uint8Array(count), turned = new Set();
  for (let root = 0; root < count; root++) {
    if (state[root]) continue;
    const stack = [[root, 0]];
    state[root] = 1;
    while (stack.length) {
      const top = stack.at(-1), index = leaving[top[0]][top[1]++];
      if (index === undefined) {
        state[top[0]] = 2;
        stack.pop();
      } else if (items[edges[index].to].end) continue;
      else if (edges[index].kind === "feedback") turned.add(index);
      else if (state[edges[index].to] === 1) turned.add(index);
      else if (state[edges[index].to] === 0) {
        state[edges[index].to] = 1;
        stack.push([edges[index].to, 0]);
      }
    }
  }
  return edges.map((edge, index) =>
    turned.has(index)
      ? { ...edge, from: edge.to, to: edge.from, fromX: edge.toX, toX: edge.fromX, turned: true }
      : { ...edge, turned: false },
  );
}

/** The rank of each item: below all that it reads, and as far down as its only readers allow. */
function rankItems(items, edges) {
  const into = items.map(() => []), out = items.map(() => []);
  for (const { from, to } of edges) {
    if (from === to || items[from].end || items[to].end) continue;
    into[to].push(from);
    out[from].push(to);
  }
  const ranks = new Int32Array(items.length), waiting = into.map((sources) => sources.length);
  const order = waiting.flatMap((count, i) => (count ? [] : [i]));
  for (let at = 0; at < order.length; at++) {
    for (const to of out[order[at]]) {
      ranks[to] = Math.max(ranks[to], ranks[order[at]] + 1);
      if (--waiting[to] === 0) order.push(to);
    }
  }
  for (const item of order.reverse()) {
    const own = out[item].length, isOneOfMany = into[item].every((from) => out[from].length > MANY);
    const isPulled = own > into[item].length || (own === into[item].length && own && isOneOfMany);
    if (isPulled) ranks[item] = Math.max(ranks[item], Math.min(...out[item].map((to) => ranks[to])) - 1);
  }
  const first = items.some((item) => item.end === "top") ? 1 : 0, last = Math.max(0, ...ranks) + first + 1;
  return items.map((item, i) => (item.end === "top" ? 0 : item.end === "bottom" ? last : ranks[i] + first));
}

/** One slot for each item, and one for each rank that an edge passes. */
function passRanks(items, edges, ranks) {
  const slots = items.map((item, i) => ({ item: i, rank: ranks[i], width: item.width, x: 0, up: [], down: [] }));
  let passing = edges.reduce((sum, { from, to }) => sum + Math.max(0, ranks[to] - ranks[from] - 1), 0);
  const chains = edges.map(() => []);
  const longestFirst = edges.map((_, i) => i).sort((a, b) => span(edges[b], ranks) - span(edges[a], ranks));
  const direct = new Set();
  for (const index of longestFirst) {
    if (passing <= MOST_PASSING) break;
    passing -= Math.max(0, span(edges[index], ranks) - 1);
    direct.add(index);
  }
  const shared = new Map(); // edges that leave one point together share their way
  edges.forEach((edge, index) => {
    if (edge.from === edge.to || direct.has(index)) return;
    let before = slots[edge.from], offset = edge.fromX ?? before.width / 2;
    for (let rank = ranks[edge.from] + 1; rank < ranks[edge.to]; rank++) {
      const key = edge.turned ? null : `${edge.from},${edge.fromX ?? ""},${edge.kind ?? ""},${rank}`;
      let slot = key && shared.get(key);
      if (!slot) {
        slot = { item: -1, rank, width: 2, x: 0, up: [], down: [] };
        slots.push(slot);
        join(before, slot, offset, 1, before.item < 0 ? 8 : 2);
        if (key) shared.set(key, slot);
      }
      chains[index].push(slot);
      before = slot;
      offset = 1;
    }
    const end = slots[edge.to];
    join(before, end, offset, edge.toX ?? end.width / 2, before.item < 0 ? 2 : 1);
  });
  return { slots, chains };
}

function span(edge, ranks) {
  return ranks[edge.to] - ranks[edge.from];
}

function join(upper, lower, upperX, lowerX, weight) {
  upper.down.push({ slot: lower, own: upperX, other: lowerX, weight });
  lower.up.push({ slot: upper, own: lowerX, other: upperX, weight });
}

/** The slots of each rank from left to right: medians of neighbours, swept down and up. */
function orderRows(slots) {
  const rows = [];
  for (const slot of slots) (rows[slot.rank] ||= []).push(slot);
  for (let rank = 0; rank < rows.length; rank++) rows[rank] ||= [];
  const number = (row) => row.forEach((slot, at) => (slot.at = at));
  rows.forEach(number);
  let best = rows.map((row) => [...row]), fewest = crossings(rows);
  const sweeps = slots.length > 3000 ? 4 : SWEEPS;
  for (let sweep = 0; sweep < sweeps && fewest; sweep++) {
    const down = sweep % 2 === 0, side = down ? "up" : "down";
    const visited = down ? rows : [...rows].reverse();
    for (const row of visited) {
      for (const slot of row) slot.wanted = slot[side].length ? meanPosition(slot[side]) : slot.at;
      row.sort((a, b) => a.wanted - b.wanted || a.at - b.at);
      number(row);
    }
    const count = crossings(rows);
    if (count < fewest) {
      fewest = count;
      best = rows.map((row) => [...row]);
    }
  }
  best.forEach(number);
  return best;
}

function meanPosition(ends) {
  let sum = 0;
  for (const { slot, other } of ends) sum += slot.at + other / (slot.width + 1);
  return sum / ends.length;
}

/** How many edges cross between neighbouring ranks, counted with a tree of sums. */
function crossings(rows) {
  let total = 0;
  for (let rank = 0; rank + 1 < rows.length; rank++) {
    const ends = [], size = rows[rank + 1].length + 1, tree = new Int32Array(size + 1);
    for (const slot of rows[rank]) {
      for (const { slot: lower } of [...slot.down].sort((a, b) => a.slot.at - b.slot.at)) if (lower.rank === rank + 1) ends.push(lower.at);
    }
    ends.forEach((at, seen) => {
      let before = 0;
      for (let i = at + 1; i > 0; i -= i & -i) before += tree[i];
      total += seen - before;
      for (let i = at + 1; i <= size; i += i & -i) tree[i]++;
    });
  }
  return total;
}

/** Places along each rank: every slot near its neighbours, as far as its order allows. */
function placeAcross(slots, rows) {
  for (const row of rows) {
    let x = 0;
    for (const slot of row) {
      slot.x = x;
      x += slot.width + gapAfter(slot);
    }
    for (const slot of row) slot.x -= x / 2;
  }
  const sweeps = slots.length > 3000 ? 6 : 2 * SWEEPS;
  for (let sweep = 0; sweep < sweeps; sweep++) {
    const isDown = sweep % 2 === sweeps % 2, sides = isDown ? ["up", "down"] : ["down", "up"];
    const choose = sweep < sweeps / 2 ? mean : median; // means bring parts together, medians make lines straight
    for (const row of isDown ? rows : [...rows].reverse()) settleRow(row, sides, choose);
  }
  for (let pass = 0; pass < 2; pass++) for (const row of rows) settleRow(row, ["up", "down"], median, true);
  closeGaps(slots);
}

/** Moves what stands apart together: no part of the width stays empty in all ranks. */
function closeGaps(slots) {
  const ordered = [...slots].sort((a, b) => a.x - b.x);
  let shift = 0, end = ordered[0].x;
  for (const slot of ordered) {
    shift += Math.max(0, slot.x - end - GAP.item);
    end = Math.max(end, slot.x + slot.width);
    slot.x -= shift;
  }
}

function gapAfter(slot) {
  return slot.item < 0 ? GAP.passing : GAP.item;
}

/** Each slot where its neighbours want it, in order: slots that would overlap become one block.

    The neighbours on the first side count; those on the second choose between equal places, or count
    as much with `areEqual`. */
function settleRow(row, [first, second], choose, areEqual = false) {
  const blocks = [];
  let offset = 0;
  for (const slot of row) {
    const wanted = [];
    slot.offset = offset;
    offset += slot.width + gapAfter(slot);
    const own = slot[first].length ? first : second;
    for (const end of slot[own]) wanted.push([end.slot.x + end.other - end.own - slot.offset, end.weight]);
    if (own === first) {
      const weight = areEqual ? 1 : 0.01;
      for (const end of slot[second]) wanted.push([end.slot.x + end.other - end.own - slot.offset, weight * end.weight]);
    }
    if (!wanted.length) wanted.push([slot.x - slot.offset, 0.01]);
    let block = { wanted, slots: [slot], x: choose(wanted, slot.x - slot.offset) };
    while (blocks.length && blocks.at(-1).x > block.x) {
      const before = blocks.pop(), joined = before.wanted.concat(block.wanted);
      block = { wanted: joined, slots: before.slots.concat(block.slots), x: choose(joined, block.x) };
    }
    blocks.push(block);
  }
  for (const { x, slots } of blocks) for (const slot of slots) slot.x = x + slot.offset;
}

function mean(pairs) {
  let sum = 0, weight = 0;
  for (const [value, own] of pairs) {
    sum += own * value;
    weight += own;
  }
  return sum / weight;
}

/** The weighted median of [value, weight] pairs; between two medians, what is nearest to `current`. */
function median(pairs, current) {
  if (pairs.length === 1) return pairs[0][0];
  pairs.sort((a, b) => a[0] - b[0]);
  const half = pairs.reduce((sum, [, weight]) => sum + weight, 0) / 2;
  let below = 0;
  for (let i = 0; i < pairs.length; i++) {
    below += pairs[i][1];
    if (Math.abs(below - half) < 1e-9 && i + 1 < pairs.length) return Math.max(pairs[i][0], Math.min(pairs[i + 1][0], current));
    if (below > half) return pairs[i][0];
  }
  return pairs.at(-1)[0];
}

function placed(items, edges, directed, slots, rows, chains) {
  let left = Infinity, right = -Infinity, y = 0;
  for (const slot of slots) {
    left = Math.min(left, slot.x);
    right = Math.max(right, slot.x + slot.width);
  }
  const top = [], bottom = [];
  rows.forEach((row, rank) => {
    const height = Math.max(0, ...row.map((slot) => (slot.item < 0 ? 0 : items[slot.item].height)));
    top[rank] = y;
    bottom[rank] = y + height;
    y += height + GAP.rank;
  });
  const places = items.map((item, i) => {
    const middle = (top[slots[i].rank] + bottom[slots[i].rank] - item.height) / 2;
    return { x: slots[i].x - left, y: item.end === "top" ? top[slots[i].rank] : item.end === "bottom" ? bottom[slots[i].rank] - item.height : middle };
  });
  const routes = directed.map((edge, index) => {
    const points = [{ x: places[edge.from].x + (edge.fromX ?? items[edge.from].width / 2), y: places[edge.from].y + items[edge.from].height }];
    points.push({ x: points[0].x, y: bottom[slots[edge.from].rank] });
    for (const slot of chains[index]) {
      const x = slot.x - left + 1;
      points.push({ x, y: top[slot.rank] }, { x, y: bottom[slot.rank] });
    }
    const x = places[edge.to].x + (edge.toX ?? items[edge.to].width / 2);
    points.push({ x, y: top[slots[edge.to].rank] }, { x, y: places[edge.to].y });
    return edge.turned ? points.reverse() : points;
  });
  return { width: right - left, height: y - GAP.rank, places, routes };
}

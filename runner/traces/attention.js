/* The weights of one layer: bytes for each row, [heads, n] over the n positions that the row sees. */

const MEAN = -1; // in place of a head: the mean of all

class Attention {
  constructor({ name, heads, of, seen, weights }) {
    Object.assign(this, { name, heads, seen, isOfSource: of === "source" });
    const text = atob(weights);
    this.bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
    this.starts = [0];
    for (const count of seen) this.starts.push(this.starts.at(-1) + heads * count);
  }

  /* The oldest position that a row sees. */
  first(row) {
    return this.isOfSource ? 0 : row + 1 - this.seen[row];
  }

  /* The weights of a row, 0 to 1, over the positions from first(row) on. */
  row(row, head) {
    const count = this.seen[row], start = this.starts[row];
    if (head !== MEAN) return Float32Array.from(this.bytes.subarray(start + head * count, start + (head + 1) * count), (byte) => byte / 255);
    const mean = new Float32Array(count);
    for (let i = 0; i < this.heads * count; i++) mean[i % count] += this.bytes[start + i] / 255 / this.heads;
    return mean;
  }

  /* [position, weight] of the largest weight of a row. */
  top(row, head) {
    const weights = this.row(row, head);
    const at = weights.reduce((best, weight, i) => (weight > weights[best] ? i : best), 0);
    return [this.first(row) + at, weights[at]];
  }
}

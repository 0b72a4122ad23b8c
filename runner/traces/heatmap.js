/* One head as a picture: a row for each position that was read, a column for each that it sees. */

const LABEL_FONT = "11px ui-monospace, Menlo, Consolas, monospace";
const LARGEST_CELL = 24, SMALLEST_CELL = 3, LABELLED_CELL = 11;
const LARGEST_CANVAS = 12000; // pixels at a side, which browsers can still make
const LABEL_ROOM = 76, LABEL_CHARACTERS = 10;

class HeatMap {
  constructor(canvas, { rows, columns, onSelect, onHover }) {
    Object.assign(this, { canvas, rows, columns });
    const at = (event) => this.cellAt(event.offsetX, event.offsetY);
    canvas.addEventListener("click", (event) => at(event) && onSelect(at(event).row));
    canvas.addEventListener("mousemove", (event) => onHover(at(event)));
    canvas.addEventListener("mouseleave", () => onHover(null));
  }

  /* The size of a cell: as large as fits. */
  arrange(attention) {
    this.attention = attention;
    const columns = attention.isOfSource ? this.columns : this.rows.slice(0, attention.seen.length);
    this.labels = { rows: this.rows.slice(0, attention.seen.length), columns };
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement;
    const most = Math.max(columns.length, this.labels.rows.length);
    const room = Math.min((width - LABEL_ROOM - 4) / columns.length, (height - LABEL_ROOM - 4) / this.labels.rows.length);
    this.cell = Math.max(SMALLEST_CELL, Math.min(LARGEST_CELL, Math.floor(room) || 1, Math.ceil(LARGEST_CANVAS / most)));
    this.margin = this.cell >= LABELLED_CELL ? LABEL_ROOM : 4;
  }

  draw(attention, head, selected, hovered) {
    this.arrange(attention);
    const { cell, margin, canvas } = this, { rows, columns } = this.labels;
    const width = margin + columns.length * cell + 2, height = margin + rows.length * cell + 2;
    const scale = window.devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d"), known = {};
    const colour = (name) => (known[name] ??= this.resolve(name));
    pen.scale(scale, scale);
    const gap = cell > 6 ? 1 : 0;
    for (let row = 0; row < rows.length; row++) {
      const weights = attention.row(row, head), first = attention.first(row), y = margin + row * cell;
      pen.globalAlpha = 1;
      pen.fillStyle = colour("--seen");
      pen.fillRect(margin + first * cell, y, weights.length * cell - gap, cell - gap);
      pen.fillStyle = colour("--heat");
      for (let i = 0; i < weights.length; i++) {
        if (weights[i] < 0.002) continue;
        pen.globalAlpha = Math.sqrt(weights[i]); // small weights can be seen, too
        pen.fillRect(margin + (first + i) * cell, y, cell - gap, cell - gap);
      }
    }
    pen.globalAlpha = 1;
    if (cell >= LABELLED_CELL) this.drawLabels(pen, colour, selected, hovered);
    if (selected < rows.length) {
      pen.strokeStyle = colour("--accent");
      pen.lineWidth = 1.5;
      pen.strokeRect(margin - 1, margin + selected * cell - 1, columns.length * cell + 1, cell + 1);
    }
  }

  /* A colour of the theme as a canvas knows it. */
  resolve(name) {
    this.canvas.style.color = `var(${name})`;
    return getComputedStyle(this.canvas).color;
  }

  drawLabels(pen, colour, selected, hovered) {
    const { cell, margin } = this, { rows, columns } = this.labels;
    pen.font = LABEL_FONT;
    pen.textBaseline = "middle";
    const short = (text) => (text.length > LABEL_CHARACTERS ? `${text.slice(0, LABEL_CHARACTERS - 1)}…` : text);
    pen.textAlign = "right";
    rows.forEach((text, row) => {
      pen.fillStyle = colour(row === selected ? "--accent" : hovered?.row === row ? "--ink" : "--muted");
      pen.fillText(short(text), margin - 5, margin + (row + 0.5) * cell);
    });
    pen.textAlign = "left";
    columns.forEach((text, column) => {
      pen.save();
      pen.translate(margin + (column + 0.5) * cell, margin - 5);
      pen.rotate(-Math.PI / 2);
      pen.fillStyle = colour(hovered?.column === column ? "--ink" : "--muted");
      pen.fillText(short(text), 0, 0);
      pen.restore();
    });
  }

  /* Scrolls to a row. */
  reveal(row) {
    const room = this.canvas.parentElement, y = this.margin + row * this.cell;
    if (y < room.scrollTop || y + 2 * this.cell > room.scrollTop + room.clientHeight) room.scrollTop = y - room.clientHeight / 2;
  }

  cellAt(x, y) {
    if (!this.labels) return null;
    const row = Math.floor((y - this.margin) / this.cell), column = Math.floor((x - this.margin) / this.cell);
    const isInside = row >= 0 && row < this.labels.rows.length && column >= 0 && column < this.labels.columns.length;
    return isInside ? { row, column } : null;
  }
}

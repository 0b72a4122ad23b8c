"""The wavefront as a page: one square per cell, one frame per cycle, a slider to move through them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from ...ir.errors import SystolicError
from .analytic import compute_cycles, mapping
from .targets import Arrays
from .trace import wave_starts

LARGEST_SIDE, MOST_CYCLES = 32, 4096

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>
 body {{ font: 14px sans-serif; margin: 2em }}
 #cells {{ display: grid; grid-template-columns: repeat({columns}, 34px); gap: 2px; margin: 1em 0 }}
 #cells div {{ height: 34px; font-size: 10px; line-height: 34px; text-align: center; background: #eee }}
 input {{ width: 40em }}
</style>
<h1>{title}</h1>
<p>Each cell shows the element of the wave that it works on; the colour is the fold.</p>
<button id="play">play</button> <input id="at" type="range" min="0" value="0"> <span id="cycle"></span>
<div id="cells"></div>
<script>
const frames = {frames}, folds = {folds}, at = document.getElementById("at");
const cells = document.getElementById("cells"), cycle = document.getElementById("cycle");
at.max = frames.length - 1;
for (let i = 0; i < {cells}; i++) cells.appendChild(document.createElement("div"));
function show() {{
  frames[at.value].forEach((element, i) => {{
    const cell = cells.children[i], fold = folds[at.value][i];
    cell.textContent = element < 0 ? "" : element;
    cell.style.background = element < 0 ? "#eee" : `hsl(${{fold * 67 % 360}} 70% 75%)`;
  }});
  cycle.textContent = `cycle ${{at.value}} of ${{frames.length}}`;
}}
let timer = 0;
document.getElementById("play").onclick = () => {{
  const next = () => {{ at.value = (+at.value + 1) % frames.length; show(); }};
  timer = timer ? clearInterval(timer) : setInterval(next, 150);
}};
at.oninput = show;
show();
</script>
"""


def wavefront_page(m: int, k: int, n: int, arrays: Arrays) -> str:
    """An HTML page that shows lhs [m, k] · rhs [k, n] move through one small array, cycle by cycle."""
    cycles = int(compute_cycles(m, k, n, replace(arrays, count=1)))
    if max(arrays.rows, arrays.columns) > LARGEST_SIDE or cycles > MOST_CYCLES:
        limit = f"at most {LARGEST_SIDE}x{LARGEST_SIDE} cells and {MOST_CYCLES:,} cycles"
        raise SystolicError(
            f"{arrays.rows}x{arrays.columns} cells for {cycles:,} cycles; an animation has {limit}"
        )
    elements = np.full((cycles, arrays.rows, arrays.columns), -1)
    folds = np.zeros_like(elements)
    wave = np.arange(mapping(m, k, n, arrays.dataflow).wave)
    for index, (start, fold) in enumerate(wave_starts(m, k, n, arrays)):
        i, j = np.arange(fold.rows)[None, :, None], np.arange(fold.columns)[None, None]
        at = (start + wave[:, None, None] + i + j, i, j)
        elements[at], folds[at] = wave[:, None, None], index
    title = f"[{m}, {k}] · [{k}, {n}] on {arrays.rows}×{arrays.columns}, {arrays.dataflow}"
    flat = (cycles, arrays.rows * arrays.columns)
    return PAGE.format(
        title=title,
        columns=arrays.columns,
        cells=flat[1],
        frames=json.dumps(elements.reshape(flat).tolist()),
        folds=json.dumps(folds.reshape(flat).tolist()),
    )

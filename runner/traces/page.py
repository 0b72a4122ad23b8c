"""A trace as one page that needs no network: our own JavaScript and CSS, and the data, in one file."""

from __future__ import annotations

import base64
import html
import json
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from .board import visible_text
from .record import Attention, GenerationTrace, trace_json

SCRIPTS = ("attention.js", "heatmap.js", "trace.js")  # in this order: each uses only what stands before it


def trace_page(trace: GenerationTrace) -> str:
    """The page that shows a trace: the text, a heat map of attention, and what else could have been."""
    folder = files(__package__)
    read = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in (*SCRIPTS, "trace.css")}
    encoded = json.dumps(page_data(trace), ensure_ascii=False, separators=(",", ":"))
    return Template(folder.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(trace.model),
        style=read["trace.css"],
        script="\n".join(read[name] for name in SCRIPTS),
        data=encoded.replace("<", "\\u003c"),  # no text may end the script that holds it
    )


def page_data(trace: GenerationTrace) -> dict[str, Any]:
    """The trace as the page reads it: as in ``trace_json``, but with all weights, and without the texts."""
    record = trace_json(trace)
    for step in record["steps"]:
        del step["attention"], step["text"]
    for token in (*record["tokens"], *record["source"]):
        token["text"] = visible_text(token["text"])
    record["attention"] = [
        {**shown, "seen": [rows.shape[1] for rows in stream.weights], "weights": _packed(stream)}
        for shown, stream in zip(record["attention"], trace.attention, strict=True)
    ]
    return record


def _packed(stream: Attention) -> str:
    """The weights of all rows, one row after the other, [heads, n] each, in 255ths: base64 of bytes."""
    rows = [np.rint(weights * 255).clip(0, 255).astype(np.uint8).tobytes() for weights in stream.weights]
    return base64.b64encode(b"".join(rows)).decode("ascii")

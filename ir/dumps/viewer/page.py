"""Puts the page together: our own JavaScript and CSS, and the data, in one file that needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

# In this order: each uses only what stands before it.
SCRIPTS = (
    "dump.js",
    "hierarchy.js",
    "layout.js",
    "scene.js",
    "passes.js",
    "marks.js",
    "pane.js",
    "panel.js",
    "search.js",
    "viewer.js",
    "toolbar.js",
    "start.js",
)


def viewer_page(title: str, data: Mapping[str, Any]) -> str:
    """The page that shows ``data``: see ``runner.commands.page`` for what it holds."""
    folder = files(__package__)
    read = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in (*SCRIPTS, "viewer.css")}
    encoded = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Template(folder.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        style=read["viewer.css"],
        script="\n".join(read[name] for name in SCRIPTS),
        data=encoded.replace("<", "\\u003c"),  # no text may end the script that holds it
    )

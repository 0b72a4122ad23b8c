"""Makes the screenshots of docs/images: python docs/make_screenshots.py [NAME …]

Needs chromium, chromedriver and selenium. The models are configurations without weights, and for the trace
the embedded model.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from systolic.models.load import load
from systolic.runner.commands.page import model_page
from systolic.runner.compilation import compile
from systolic.runner.options import options_for
from systolic.runner.stages import Stages
from systolic.runner.traces.page import trace_page
from systolic.runner.traces.record import record_trace

IMAGES = Path(__file__).parent / "images"
SIZE = (1320, 900)  # of the window; a picture is somewhat lower
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
GPT3 = {
    "model_type": "gpt2",
    "n_layer": 96,
    "n_head": 96,
    "n_embd": 12288,
    "vocab_size": 50257,
    "n_positions": 2048,
}
MAMBA = {
    "model_type": "mamba",
    "hidden_size": 64,
    "num_hidden_layers": 24,
    "vocab_size": 512,
    "state_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "time_step_rank": 4,
}


class Page:
    """The viewer of one model in a browser."""

    def __init__(
        self, browser: Any, config: Mapping[str, object], folder: Path, stage: str = "traced"
    ) -> None:
        (folder / "config.json").write_text(json.dumps(config))
        model = load(str(folder / "config.json"))
        page = folder / "page.html"
        page.write_text(model_page(Stages(model, options_for(model), None), stage), encoding="utf-8")
        self.browser = browser
        browser.get("about:blank")
        browser.get(page.as_uri())

    def click(self, selector: str) -> None:
        self.browser.find_element("css selector", selector).click()
        time.sleep(0.6)  # until the camera stands still

    def hide(self, *stages: str) -> None:
        for stage in stages:
            self.click(f'#stages [data-stage="{stage}"]')

    def open(self, key: str, stage: str = "passes") -> None:
        self.click(f'[data-stage="{stage}"] [data-act="toggle"][data-of="{key}"]')

    def ask(self, script: str, *arguments: object) -> None:
        self.browser.execute_script(script, *arguments)
        time.sleep(0.6)

    def go_to(self, name: str) -> None:
        self.ask("viewer.goTo(arguments[0])", name)

    def dark(self) -> None:
        self.ask("viewer.setTheme('dark')")


def side_by_side(browser: Any, folder: Path) -> None:
    """GPT-3's shape: a layer open in the graph per token and in the decode step, a key selected."""
    page = Page(browser, GPT3, folder)
    page.hide("prefill")
    page.open("layers.0-95/")
    page.open("layers.0.attn/")
    page.go_to("layers.0.attn.k")


def heat_map(browser: Any, folder: Path) -> None:
    """Where the bytes of a decode step go, in the dark."""
    page = Page(browser, GPT3, folder)
    page.dark()
    Select(browser.find_element("id", "heat")).select_by_visible_text("bytes read and written")
    page.open("layers.0-95/")
    page.click("#tab-states")


def pass_by_pass(browser: Any, folder: Path) -> None:
    """What simplifying removed and changed."""
    page = Page(browser, GPT3, folder)
    page.hide("prefill", "decode")
    page.open("layers.0-95/")
    page.open("layers.0.attn/")
    browser.find_element("id", "pass").send_keys(Keys.RIGHT, Keys.RIGHT)
    page.click("#tab-passes")
    page.go_to("layers.0.attn.q")


def recurrence(browser: Any, folder: Path) -> None:
    """A state-space model: delays and feedback."""
    page = Page(browser, MAMBA, folder)
    page.hide("prefill", "decode")
    page.open("layers.0-23/")
    page.go_to("layers.0.inner")


def trace(browser: Any, folder: Path) -> None:
    """A step of the embedded model, and where one head looks."""
    executable = compile(load(), backend="numpy")
    prompt = executable.prompt_ids("ROMEO:\nWhat is")
    new_ids = executable.generate(prompt, max_new_tokens=24, temperature=0.8, seed=3)
    page = folder / "trace.html"
    page.write_text(trace_page(record_trace(executable, prompt, new_ids)), encoding="utf-8")
    browser.get(page.as_uri())
    browser.find_element("css selector", '[data-token="11"]').click()
    browser.find_element("css selector", '#looks [data-layer="4"][data-head="0"]').click()


SHOTS: dict[str, Callable[[Any, Path], None]] = {
    "viewer": side_by_side,
    "viewer-heat": heat_map,
    "viewer-passes": pass_by_pass,
    "viewer-recurrence": recurrence,
    "trace": trace,
}


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        for flag in [*FLAGS.split(), size, f"--user-data-dir={folder}/profile"]:
            options.add_argument(flag)
        browser = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
        )
        IMAGES.mkdir(exist_ok=True)
        for name in names or SHOTS:
            SHOTS[name](browser, Path(folder))
            browser.save_screenshot(str(IMAGES / f"{name}.png"))
            print(IMAGES / f"{name}.png")
        browser.quit()


if __name__ == "__main__":
    main(sys.argv[1:])

"""systolic run --trace: the table, the JSON and the page, against what the model says of the same text."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import attention, recurrent, tiny, window

import systolic as sy
from systolic.runner.traces.board import board
from systolic.runner.traces.page import page_data, trace_page
from systolic.runner.traces.record import GenerationTrace, record_trace, trace_json

PROMPT = "ROMEO:\nWhat is"


@pytest.fixture(scope="module")
def shakespeare() -> sy.Executable:
    return sy.compile(sy.load(), backend="numpy")


@pytest.fixture(scope="module")
def traced(shakespeare: sy.Executable) -> GenerationTrace:
    ids = shakespeare.prompt_ids(PROMPT)
    return record_trace(
        shakespeare, ids, shakespeare.generate(ids, max_new_tokens=14, temperature=0.8, seed=3)
    )


# ---- what is recorded ----


def test_steps_are_what_the_model_says(shakespeare, traced):
    ids = [token.id for token in traced.tokens]
    assert ids[: traced.prompt] == shakespeare.prompt_ids(PROMPT)
    logits = shakespeare.score(ids).astype(np.float64)
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    entropies = -(chances * np.log2(chances)).sum(-1)
    assert [step.index for step in traced.steps] == list(range(traced.prompt, len(ids)))
    for step in traced.steps:
        row = chances[step.index - 1]
        assert step.chosen.token.id == ids[step.index]
        assert step.chosen.probability == pytest.approx(row[ids[step.index]], abs=1e-4)
        assert step.entropy == pytest.approx(entropies[step.index - 1], abs=1e-3)
        assert [c.probability for c in step.candidates] == pytest.approx(np.sort(row)[:-9:-1], abs=1e-4)
        assert step.text == shakespeare.tokenizer.decode(ids[: step.index])
    assert "".join(token.text for token in traced.tokens[1:]) == shakespeare.tokenizer.decode(ids)


def test_attention_is_what_a_tap_reads(shakespeare, traced):
    ids = [token.id for token in traced.tokens]
    _, values = shakespeare.tap("layers.*.attn.probs").score(ids)
    assert [stream.name for stream in traced.attention] == list(values)
    for stream in traced.attention:
        assert len(stream.weights) == len(ids) - 1  # the last token is not read
        for row, weights in enumerate(stream.weights):
            expected = values[stream.name][row].reshape(4, row + 1)  # 2 groups of 2 heads
            np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_json_has_the_positions_that_each_head_looks_at(traced):
    record = json.loads(json.dumps(trace_json(traced)))
    for step in record["steps"]:
        for stream in traced.attention:
            for head, listed in enumerate(step["attention"][stream.name]):
                weights = stream.weights[step["index"] - 1][head]
                assert [entry["position"] for entry in listed] == np.argsort(-weights, kind="stable")[
                    :5
                ].tolist()
                assert [entry["weight"] for entry in listed] == pytest.approx(np.sort(weights)[::-1][:5])
    assert record["steps"][0]["text"].endswith(PROMPT)
    assert record["tokens"][record["steps"][3]["index"]] == record["steps"][3]["token"]


def test_a_window_is_numbered_by_positions():
    """Of the last four positions, not of the slots of the ring that they are kept in."""
    executable = tiny(window)
    ids = [int(token) for token in np.random.default_rng(2).integers(0, 23, 30)]
    trace = record_trace(executable, ids, executable.generate(ids, max_new_tokens=3))
    (stream,) = trace.attention
    assert [stream.first(row) for row in (0, 3, 4, 29)] == [0, 0, 1, 26]
    for step in trace_json(trace)["steps"]:
        (listed,) = step["attention"][stream.name]
        assert {entry["position"] for entry in listed} == set(range(step["index"] - 4, step["index"]))


def test_an_encoder_decoder_looks_at_its_text_and_its_source(shared):
    executable = sy.compile(sy.load(shared / "oracle" / "t5"), backend="numpy", capacity=32)
    source = [5, 9, 13, 17, 21]
    new = executable.generate(source, max_new_tokens=6, ignore_eos=True)
    trace = record_trace(executable, source, new)
    assert [token.id for token in trace.tokens] == [executable.inputs.start, *new]
    assert {stream.is_of_source for stream in trace.attention} == {True, False}
    for stream in trace.attention:
        widths = [weights.shape[1] for weights in stream.weights]
        assert widths == ([5] * 6 if stream.is_of_source else [1, 2, 3, 4, 5, 6])
        for weights in stream.weights:
            np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert "looks at in the source" in board(trace)


# ---- the table ----


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits(traced, width):
    lines = board(traced, width).split("\n")
    assert max(map(len, lines)) <= width
    assert re.split(r"\s{2,}", lines[0].strip()) == [
        "#",
        "text so far",
        "next",
        "p",
        "bits",
        "likeliest",
        "looks at",
    ]
    assert len(lines) == 1 + 14 + 3
    assert re.search(r"ROMEO:↵What is  ␣the +16% +3\.9  ␣it 23%  't 21%.*  What 35%  ␣is 24%$", lines[1])


def test_the_table_of_a_model_without_attention():
    executable = tiny(recurrent)
    trace = record_trace(executable, [1, 2, 3], executable.generate([1, 2, 3], max_new_tokens=4))
    shown = board(trace)
    assert "looks at" not in shown
    assert shown.endswith("this model has no attention: what it knows of the text is in its states")
    assert trace_json(trace)["steps"][0]["text"] == "1 2 3"  # no tokenizer


def test_no_new_token():
    assert board(record_trace(tiny(attention), [1, 2], [])) == "no new token"


# ---- the command ----


def test_run_prints_the_table_behind_the_text(cli):
    options = ("--prompt", PROMPT, "--max-new-tokens", 3, "--backend", "numpy")
    _, plain, _ = cli("run", *options)
    status, out, _ = cli("run", *options, "--trace", "-")
    assert status == 0
    assert out.startswith(plain + "\n")
    assert "text so far" in out


def test_run_writes_json_and_a_page(cli, tmp_path):
    options = ("--prompt", PROMPT, "--max-new-tokens", 3, "--backend", "numpy", "--json")
    status, out, _ = cli("run", *options, "--trace", tmp_path / "t.json")
    assert status == 0
    record = json.loads((tmp_path / "t.json").read_text())
    assert [step["token"]["id"] for step in record["steps"]] == json.loads(out)["new_ids"]
    status, _, err = cli("run", *options, "--trace", tmp_path / "t.json")
    assert (status, "t.json exists already; --force overwrites it" in err) == (2, True)
    assert cli("run", *options, "--trace", tmp_path / "t.html", "--force")[0] == 0
    assert (tmp_path / "t.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trace", "t.txt"), "--trace must be a file that ends with .json or .html, or -, not 't.txt'"),
        (("--trace", "-", "--json"), "--trace - and --json both print"),
        (("--trace", "t.json", "--beams", "2"), "--trace records one text, and --beams searches"),
    ],
)
def test_what_cannot_be_traced_is_told_before_any_work(cli, options, message):
    status, out, err = cli("run", *options)
    assert (status, out) == (2, "")
    assert message in err


# ---- the page ----


def test_the_page_needs_no_network(traced):
    text = trace_page(traced)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|@import|url\(|\bfetch\(|\bimport\(""", text)
    assert text.count("</script>") == 2


def test_the_page_holds_all_weights(traced):
    for shown, stream in zip(page_data(traced)["attention"], traced.attention, strict=True):
        packed = np.frombuffer(base64.b64decode(shown["weights"]), np.uint8) / 255
        assert shown["seen"] == list(range(1, len(traced.tokens)))
        expected = np.concatenate([weights.ravel() for weights in stream.weights])
        np.testing.assert_allclose(packed, expected, atol=0.5 / 255 + 1e-6)


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens the page of a trace; in the end nothing may have gone wrong in it, and nothing been loaded."""

    def opened(trace: GenerationTrace) -> Any:
        (tmp_path / "page.html").write_text(trace_page(trace), encoding="utf-8")
        chromium.get("about:blank")
        chromium.get((tmp_path / "page.html").as_uri())
        assert chromium.execute_script("return document.documentElement.dataset.ready") == "true"
        return chromium

    chromium.get_log("browser")
    yield opened
    assert chromium.get_log("browser") == []
    fetched = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [name for name in chromium.execute_script(fetched) if not name.startswith("data:")] == []


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def shown_share(text: str) -> float:
    return float(re.search(r"([\d.]+)%", text)[1]) / 100


def press(browser: Any, keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(keys).perform()


def test_a_person_before_the_page(open_page, traced):
    from selenium.webdriver import ActionChains, Keys

    browser = open_page(traced)
    title = find(browser, "#step-title")
    assert title.text.startswith("␣the 16%")  # the first new token
    find(browser, f'[data-token="{traced.prompt + 3}"]').click()
    assert title.text.startswith("ies 60%")
    chosen = find(browser, "#candidates .chosen")
    assert chosen.text.split() == ["ies", "60%"]
    press(browser, Keys.ARROW_RIGHT)
    assert title.text.startswith("? 27%")
    press(browser, Keys.HOME)
    assert title.text == "<|begin|> was given"
    # Layers and heads, by keys and by clicks: what is told is what was recorded.
    press(browser, Keys.END)
    row = len(traced.tokens) - 2
    press(browser, Keys.ARROW_UP + "]]")
    assert find(browser, '#heads [aria-pressed="true"]').text == "1"
    weights = traced.attention[3].weights[row][1]
    told = find(browser, "#cell").text
    assert f"({weights.argmax()})" in told
    assert shown_share(told) == pytest.approx(weights.max(), abs=0.003)
    find(browser, '#looks [data-layer="0"][data-head="3"]').click()
    assert find(browser, "#layer").get_attribute("value") == "0"
    assert "head 3" in find(browser, "#heat").get_attribute("aria-label")
    # The map: hovering tells a cell, a click selects the token that was chosen from its row.
    canvas = find(browser, "#heat")
    cell, margin = browser.execute_script("return [page.map.cell, page.map.margin]")
    x, y = margin + 2.5 * cell, margin + 9.5 * cell
    offset = (x - canvas.size["width"] / 2, y - canvas.size["height"] / 2)
    ActionChains(browser).move_to_element_with_offset(canvas, *map(int, offset)).perform()
    assert find(browser, "#cell").text.endswith(" on OM (2)")
    weight = traced.attention[0].weights[9][3][2]
    assert shown_share(find(browser, "#cell").text) == pytest.approx(weight, abs=0.003)
    ActionChains(browser).click().perform()
    assert title.text.startswith("ad 3%")


def test_light_and_dark(open_page, traced):
    browser = open_page(traced)
    ground = "return getComputedStyle(document.body).backgroundColor"
    seen = set()
    for _ in range(3):
        press(browser, "t")
        seen.add((browser.execute_script("return page.theme"), browser.execute_script(ground)))
    assert {theme for theme, _ in seen} == {"auto", "light", "dark"}
    assert len({colour for theme, colour in seen if theme != "auto"}) == 2


def test_the_page_of_a_model_without_attention(open_page):
    executable = tiny(recurrent)
    browser = open_page(record_trace(executable, [1, 2, 3], executable.generate([1, 2, 3], max_new_tokens=4)))
    assert find(browser, "#none").is_displayed()
    assert not find(browser, "#heat").is_displayed()
    press(browser, "]")  # nothing to choose
    find(browser, '[data-token="5"]').click()
    assert find(browser, "#step-title").text


def test_the_page_of_an_encoder_decoder(open_page, shared):
    executable = sy.compile(sy.load(shared / "oracle" / "t5"), backend="numpy", capacity=32)
    new = executable.generate([5, 9, 13, 17, 21], max_new_tokens=6, ignore_eos=True)
    browser = open_page(record_trace(executable, [5, 9, 13, 17, 21], new))
    for _ in range(4):  # through layers of both kinds
        press(browser, "\ue013")  # arrow up
        assert find(browser, "#cell").text
    assert "5 of the source" in find(browser, "#about").text

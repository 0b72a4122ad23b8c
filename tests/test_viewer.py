"""The viewer's page: what it holds, and what it does in a browser, with real clicks and keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_reader import Reader

import systolic as sy
from systolic.ir.dumps.text import inline_literals
from systolic.ir.errors import SystolicError
from systolic.ir.graph import Graph
from systolic.ir.types import show_type
from systolic.models.load import load
from systolic.runner.commands.page import model_page
from systolic.runner.graph_model import model_of_graph
from systolic.runner.options import options_for
from systolic.runner.stages import Stages

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
GPT3 = {
    "model_type": "gpt2",
    "n_layer": 96,
    "n_head": 96,
    "n_embd": 12288,
    "vocab_size": 50257,
    "n_positions": 2048,
}


def stages_of(path: Path) -> Stages:
    model = load(str(path))
    return Stages(model, options_for(model), None)


def stages_of_config(folder: Path, values: dict[str, Any]) -> Stages:
    (folder / "config.json").write_text(json.dumps(values))
    return stages_of(folder / "config.json")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return stages_of_config(tmp_path_factory.mktemp("llama"), LLAMA)


@pytest.fixture(scope="module")
def gpt3_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt3")
    page = folder / "gpt3.html"
    page.write_text(model_page(stages_of_config(folder, GPT3), "traced"), encoding="utf-8")
    return page


@pytest.fixture
def read(chromium: Any, tmp_path: Path) -> Iterator[Callable[[Path | str], Reader]]:
    """Opens a page, given by its file or its text; in the end nothing may have gone wrong in it."""

    def open_page(page: Path | str) -> Reader:
        if isinstance(page, str):
            (tmp_path / "page.html").write_text(page, encoding="utf-8")
            page = tmp_path / "page.html"
        return Reader(chromium, page)

    chromium.get_log("browser")
    yield open_page
    assert chromium.get_log("browser") == []
    fetched = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [name for name in chromium.execute_script(fetched) if not name.startswith("data:")] == []


@pytest.fixture
def page(read: Callable[[Path | str], Reader], llama: Stages) -> Reader:
    return read(model_page(llama, "traced"))


# ---- the file ----


def test_a_scope_that_is_not_there(cli, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    options = ("--format", "html", "--expand", "layers.9", "--out", tmp_path / "page.html")
    status, _, err = cli("graph", tmp_path / "config.json", *options)
    assert (status, "--expand: llama has no scope 'layers.9'" in err) == (2, True)
    assert not (tmp_path / "page.html").exists()


def test_the_page_needs_no_network(llama):
    text = model_page(llama, "traced")
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|@import|url\(|\bfetch\(|\bimport\(""", text)
    assert text.count("</script>") == 2


def odd_stages() -> Stages:
    """A graph whose names have all that names can have."""

    def model(x: sy.Stream) -> dict[str, sy.Stream]:
        with sy.scope("a b"):
            said = sy.tanh(sy.cast(x, "f32")).named('say "hi", {i}')
        return {"out put": sy.sum(sy.history(said), axis=0).named("</script>$data")}

    made = model_of_graph(sy.trace(model), None, 16)
    return Stages(made, options_for(made), None)


def test_no_text_ends_the_data():
    text = model_page(odd_stages(), "traced")
    assert text.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert "</script>$data" in json.loads(data[1])["passes"][0]["text"]


def test_a_model_as_large_as_gpt3_is_a_small_file(gpt3_page):
    assert gpt3_page.stat().st_size < 1_000_000


def test_the_command_writes_a_file(cli, llama, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    out = tmp_path / "model.html"
    status, printed, err = cli("graph", tmp_path / "config.json", "--format", "html")
    assert (status, printed) == (2, "")
    assert "--format html is for a file: name it with --out" in err
    assert cli("graph", tmp_path / "config.json", "--format", "html", "--out", out)[0] == 0
    assert out.read_text().startswith("<!doctype html>")
    status, _, err = cli(
        "graph", tmp_path / "config.json", "--format", "html", "--stage", "diff", "--out", out
    )
    assert (status, "--stage diff is a list of changes" in err) == (2, True)


# ---- reading the dumps ----


def edges_of(graph: Graph) -> dict[str, list[Any]]:
    """What the page must have read: op, type and operands of each node by its name."""
    literals = inline_literals(graph)
    feedback = dict(graph.feedback)
    read = {}
    for node in graph.nodes:
        if node not in literals:
            operands = [literals.get(e.source) or [e.source.name, str(e.access)] for e in node.inputs]
            operands += [[feedback[node].name, "t-1"]] if node in feedback else []
            read[node.name] = [node.op.name, show_type(node.type), operands]
    return read


READ = """
const graph = viewer.hierarchy(arguments[0]).graph, read = {};
for (const node of graph.nodes) {
  if (node.inside || node.change === "removed") continue;
  read[node.name] = [node.op, node.type, node.reads.map((e) => e.literal ?? [e.source.name, e.access])];
}
return [read, Object.fromEntries([...graph.outputs].map(([name, node]) => [name, node.name]))];
"""


def assert_reads_all(reader: Reader, stages: Stages) -> int:
    """The page's own reader of dumps finds exactly the graphs, after every pass and of every program."""
    compared = 0
    for position, name in enumerate(stages.passes):
        reader.ask("viewer.setPass(arguments[0])", position)
        compared += assert_same_graph(reader.ask(READ, "passes"), stages.graph(name))
    for name in ("source", "prefill", "decode", "score"):
        try:
            graph = stages.graph(name)
        except SystolicError:
            continue
        compared += assert_same_graph(reader.ask(READ, name), graph)
    return compared


def assert_same_graph(found: list[Any], graph: Graph) -> int:
    nodes, outputs = found
    assert nodes == edges_of(graph)
    assert outputs == {name: node.name for name, node in graph.outputs.items()}
    return 1


def test_the_page_reads_its_dumps(page, llama):
    assert assert_reads_all(page, llama) == len(llama.passes) + 3


def test_the_page_reads_odd_names(read):
    stages = odd_stages()
    reader = read(model_page(stages, "traced"))
    assert assert_reads_all(reader, stages) == len(stages.passes) + 3
    reader.toggle("a b/")
    reader.ask("viewer.goTo(arguments[0])", 'a b.say "hi", {i}')
    assert 'say "hi", {i}' in reader.panel()


def test_a_graph_without_scopes_begins_where_it_can_be_read(read):
    def model(x: sy.Stream) -> sy.Stream:
        first = x
        for _ in range(120):
            x = sy.tanh(x + first * 0.5) + sy.sum(sy.history(x, window=4), axis=0)
        return x

    made = model_of_graph(sy.trace(model, x="f32[4]"), None, 16)
    reader = read(model_page(Stages(made, options_for(made), None), "traced"))
    shown = reader.ask(
        "const { camera, scene } = viewer.panes.get('passes'); return [camera.zoom, scene.views.length]"
    )
    assert shown[0] >= 0.2
    assert shown[1] > 700
    input_ = reader.find('.pane[data-stage="passes"] .item[data-key="x"]')
    assert input_.is_displayed()


def test_the_page_reads_the_dumps_of_every_family(read, shared):
    folders = [f for f in sorted((shared / "oracle").iterdir()) if (f / "config.json").exists()]
    compared = 0
    for folder in folders:
        try:
            stages = stages_of(folder)
        except SystolicError:  # a family that is not known yet
            continue
        compared += assert_reads_all(read(model_page(stages, "traced")), stages)
    assert compared > 60


# ---- boxes ----


def test_layers_are_one_box_that_opens(page):
    assert [pane.get_attribute("data-stage") for pane in page.all(".pane")] == ["passes", "prefill", "decode"]
    assert page.drawn() == {"token", "embed/", "layers.0-3/", "head/"}
    assert "× 4" in page.find('[data-stage="passes"] .item[data-key="layers.0-3/"]').text
    page.toggle("layers.0-3/")
    assert {"layers.0/", "layers.0.attn/", "layers.0.mlp/", "layers.0-3/1/"} <= page.drawn()
    assert {"layers.0/", "layers.0.attn/"} <= page.drawn("decode")  # what is opened in one is in all
    page.toggle("layers.0.attn/")
    assert {"layers.0.attn.k", "layers.0.attn.probs"} <= page.drawn()
    assert "state.layers.0.attn.k" in page.drawn("decode")
    page.find('.pane[data-stage="passes"] [data-step="1"]').click()
    assert "layers.1.attn.k" in page.drawn()
    assert "layers.0.attn.k" not in page.drawn()
    assert {"layers.0/", "layers.0-3/2/"} <= page.drawn()
    page.find('.pane[data-stage="passes"] [data-zoom="fit"]').click()
    page.act("previous", "layers.0-3/")
    assert page.find('.pane[data-stage="passes"] .unit output').text == "layers.0"
    page.find('.pane[data-stage="passes"] [data-zoom="fit"]').click()
    page.act("all", "layers.0-3/")
    assert {f"layers.{i}/" for i in range(4)} <= page.drawn()
    page.toggle("layers.0-3/")
    assert page.drawn() == {"token", "embed/", "layers.0-3/", "head/"}


def test_scopes_are_open_from_the_start(read, llama):
    assert "layers.0.attn/" in read(model_page(llama, "traced", ["layers"])).drawn()
    assert "layers.2.attn.k" in read(model_page(llama, "traced", ["layers.2.attn"])).drawn("decode")


def test_edges_have_the_colour_of_their_access(page):
    page.toggle("layers.0-3/")
    page.toggle("layers.0.attn/")
    routes = page.all('[data-stage="passes"] .route.prefix .line')
    assert len(routes) == 2
    colour = page.ask("return getComputedStyle(arguments[0]).stroke", routes[0])
    legend = page.ask("return getComputedStyle(arguments[0]).borderTopColor", page.find("#legend .prefix i"))
    assert colour == legend
    assert {label.text for label in page.all('[data-stage="passes"] .access-label')} == {"0:t"}


def test_nothing_overlaps(page):
    for key in ("embed/", "layers.0-3/", "layers.0.attn/", "layers.0.mlp/", "head/"):
        page.ask("viewer.toggle(viewer.panes.get('passes'), arguments[0])", key)
    overlaps = """
    const found = [];
    for (const pane of viewer.panes.values()) {
      for (const view of [pane.scene.root, ...pane.scene.views]) {
        for (const a of view.children) for (const b of view.children) {
          if (a === b) continue;
          const across = a.x < b.x + b.width && b.x < a.x + a.width;
          if (across && a.y < b.y + b.height && b.y < a.y + a.height) found.push([a.key, b.key]);
        }
        for (const child of view.children) {
          const isOutside = child.x < view.x - 1 || child.x + child.width > view.x + view.width + 1;
          if (isOutside) found.push([child.key, "outside"]);
        }
      }
    }
    return found;"""
    assert page.ask(overlaps) == []
    upward = """
    const { routes } = viewer.panes.get("passes").scene;
    return routes.filter((route) => route.points.at(-1).y < route.points[0].y).length;"""
    assert page.ask(upward) == 0  # nothing in this model feeds back


# ---- selection ----


def test_selecting_links_the_other_stages(page):
    page.toggle("layers.0-3/")
    page.toggle("layers.0.attn/")
    page.click("layers.0.attn.k")
    assert page.marked("selected") == {"layers.0.attn.k"}
    assert page.marked("selected", "decode") == {"layers.0.attn.k"}
    assert page.marked("linked", "decode") == {"layers.0.attn.k@state", "state.layers.0.attn.k"}
    assert len(page.all("#links path")) == 2
    text = page.panel()
    assert "layers.0.attn.k" in text
    assert "models/" in text  # the source line
    assert re.search(r"KEPT AS A STATE\s+kind append", text)
    assert re.search(r"bytes per token 32\b", text)
    link = next(a for a in page.all("#panel-body a") if a.get_attribute("data-go") == "layers.0.attn.history")
    link.click()
    page.settle()
    assert page.marked("selected") == {"layers.0.attn.history"}
    assert "0:t" in page.panel()


def test_hovering_shows_what_corresponds(page):
    from selenium.webdriver import ActionChains

    item = page.find('.pane[data-stage="passes"] .item[data-key="embed/"]')
    ActionChains(page.browser).move_to_element(item).perform()
    assert page.marked("linked", "decode") == {"embed/"}


def test_what_reaches_a_node(page):
    page.toggle("layers.0-3/")
    page.toggle("layers.0.attn/")
    page.click("layers.0.attn.q")
    page.find("[data-trace]").click()
    reached = page.marked("linked")
    assert {"layers.0.attn.multiply", "token", "embed/"} <= reached
    assert "layers.0.attn.history" not in reached
    assert "hide what reaches it" in page.panel()


def test_search_finds_a_node_and_opens_what_is_around_it(page):
    box = page.find("#search")
    box.send_keys("probs softmax")
    first = page.find("#found [role=option]")
    assert "layers.{i}.attn.probs × 4" in first.text
    from selenium.webdriver.common.keys import Keys

    box.send_keys(Keys.ENTER)
    page.settle()
    assert page.marked("selected") == {"layers.0.attn.probs"}
    assert "layers.0.attn.probs" in page.drawn("decode")
    box.send_keys("nothing like it")
    assert "Nothing has this" in page.find("#found").text


def test_keys_walk_through_the_graph(page):
    from selenium.webdriver.common.keys import Keys

    page.find('.pane[data-stage="passes"] [data-zoom="in"]').click()
    page.type(Keys.TAB)  # from the buttons of the pane into its graph
    assert page.marked("selected") == {"token"}
    page.type(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page.marked("selected") == {"layers.0-3/"}
    page.type(Keys.ENTER)
    assert "layers.0.attn/" in page.drawn()
    page.type(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page.marked("selected") == {"layers.0.attn/"}
    svg = page.find('.pane[data-stage="passes"] > svg')
    active = svg.get_attribute("aria-activedescendant")
    assert page.find(f"#{active}").get_attribute("aria-label").startswith("attn, ")
    page.type("]")
    assert page.marked("selected") == {"layers.1.attn/"}
    page.type(Keys.BACKSPACE)
    assert page.marked("selected") == {"layers.1/"}
    page.type("/")
    assert page.ask("return document.activeElement.id") == "search"
    page.type(Keys.ESCAPE, Keys.ESCAPE)
    assert page.marked("selected") == set()
    page.type("?")
    assert page.find("#keys").is_displayed()
    page.type(Keys.ESCAPE)
    assert not page.find("#keys").is_displayed()


def test_every_control_has_a_name_and_a_visible_focus(page):
    unnamed = """
    const controls = [...document.querySelectorAll("button, select, input, svg[tabindex], [role=tabpanel]")];
    const hasName = (c) => c.ariaLabel || c.textContent.trim() || c.getAttribute("aria-labelledby");
    return controls.filter((c) => !hasName(c)).map((c) => c.outerHTML);"""
    assert page.ask(unnamed) == []
    from selenium.webdriver.common.keys import Keys

    page.ask("document.querySelector('#stages button').focus()")
    reached = set()
    while not page.ask("return document.activeElement.id === 'panel-body'"):
        page.type(Keys.TAB)
        reached.add(
            page.ask(
                "const { id, dataset, role } = document.activeElement;"
                "return id || dataset.stage || dataset.zoom || role"
            )
        )
        assert page.ask("return getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert {
        "decode",
        "pass",
        "search",
        "heat",
        "weights",
        "theme",
        "help",
        "tree",
        "tab-selection",
    } <= reached


# ---- what is shown ----


def test_stages_are_chosen(page):
    page.find('#stages [data-stage="prefill"]').click()
    page.find('#stages [data-stage="score"]').click()
    assert [pane.get_attribute("data-stage") for pane in page.all(".pane")] == ["passes", "decode", "score"]
    assert page.find('#stages [data-stage="prefill"]').get_attribute("aria-pressed") == "false"


def test_the_slider_goes_through_the_passes(read, tmp_path):
    from selenium.webdriver.common.keys import Keys

    small = {**GPT3, "n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 16, "n_positions": 32}
    stages = stages_of_config(tmp_path, small)
    page = read(model_page(stages, "traced"))
    page.toggle("layers.0-2/")
    page.toggle("layers.0.attn/")
    slider, names = page.find("#pass"), list(stages.passes)
    assert page.find("#pass-name").text == "traced"
    slider.send_keys(*[Keys.ARROW_RIGHT] * names.index("simplify"))
    assert page.find("#pass-name").text == "simplify"
    before, after = stages.graph(names[names.index("simplify") - 1]), stages.graph("simplify")
    gone = {node.name for node in before if node.name not in after.by_name} - set(
        inline_literals(before).values()
    )
    assert len(gone) == 3
    assert page.marked("removed") == {name for name in gone if name.startswith("layers.0.attn.")}
    assert page.marked("changed") == {"layers.0.attn.q"}
    assert page.all('[data-stage="passes"] .route.gone')
    assert "−3" in page.find('.pane[data-stage="passes"] .meta').text
    page.find("#tab-passes").click()
    assert re.search(r"simplify shown.*−3", page.panel(), re.DOTALL)
    slider.send_keys(Keys.HOME)
    assert page.marked("removed") == set()


def test_states_are_listed_with_their_bytes_and_reasons(page):
    page.find("#tab-states").click()
    text = page.panel()
    assert re.search(r"states 8\b", text)
    assert "layers.{i}.attn.k × 4" in text
    assert "32 each, 128 in all" in text
    assert "read through a prefix" in text
    page.find("#panel-body .card a").click()
    page.settle()
    assert page.marked("selected") == {"layers.0.attn.k"}


def test_the_heat_map_shows_where_the_cost_is(page):
    from selenium.webdriver.support.ui import Select

    Select(page.find("#heat")).select_by_visible_text("multiply-adds")
    assert page.find("#scale").is_displayed()
    share = page.find('.pane[data-stage="passes"] .item[data-key="layers.0-3/"] .share').text
    whole = page.ask("return viewer.panes.get('passes').totalCost(0)")
    layers = page.ask("return viewer.panes.get('passes').byKey.get('layers.0-3/').about.cost[0]")
    assert share == f"{100 * layers / whole:.0f}%"
    assert layers == 4 * (2 * 16 * 16 + 2 * 16 * 8 + 2 * 16 * 256 + 3 * 16 * 32)
    assert page.marked("hot") == {"layers.0-3/", "head/"}


def test_weights_are_drawn_on_demand(page):
    page.toggle("head/")
    assert "lm_head.weight" in page.find('.pane[data-stage="passes"] > svg').get_attribute("textContent")
    assert "lm_head.weight" not in page.drawn()
    page.find("#weights").click()
    assert "lm_head.weight" in page.drawn()


def test_light_and_dark(page):
    light = page.colour()
    for theme in ("light", "dark"):
        page.find("#theme").click()
        assert page.find("#theme").get_attribute("aria-label") == f"Theme: {theme}"
    assert page.colour() != light
    page.find("#theme").click()
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert page.colour() != light
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_zooming_and_moving(page):
    from selenium.webdriver import ActionChains

    camera = "const { x, y, zoom } = viewer.panes.get('decode').camera; return [x, y, zoom]"
    x, y, zoom = page.ask(camera)
    page.find('.pane[data-stage="decode"] [data-zoom="in"]').click()
    assert page.ask(camera)[2] > zoom
    page.find('.pane[data-stage="decode"] [data-zoom="fit"]').click()
    assert page.ask(camera) == [x, y, zoom]
    svg = page.find('.pane[data-stage="decode"] > svg')
    ActionChains(page.browser).move_to_element_with_offset(svg, 0, 300).click_and_hold().move_by_offset(
        40, -30
    ).release().perform()
    assert page.ask(camera) == pytest.approx([x + 40, y - 30, zoom], abs=1)
    assert page.marked("selected", "decode") == set()  # to move is not to select


def test_a_link_to_a_node_opens_it(read, llama, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(model_page(llama, "decode"), encoding="utf-8")
    reader = read(file)
    reader.browser.get("about:blank")
    reader.browser.get(f"{file.as_uri()}#layers.2.mlp.x")
    assert [pane.get_attribute("data-stage") for pane in reader.all(".pane")] == ["decode"]
    assert reader.marked("selected", "decode") == {"layers.2.mlp.x"}


# ---- other models ----


def test_two_clocks_and_a_source(read, shared):
    reader = read(model_page(stages_of(shared / "oracle" / "t5"), "traced"))
    shown = [pane.get_attribute("data-stage") for pane in reader.all(".pane")]
    assert shown == ["passes", "source", "prefill", "decode"]
    reader.find('#stages [data-stage="prefill"]').click()
    reader.toggle("encoder/")
    assert reader.all('[data-stage="passes"] .route.whole')


def test_a_loop_opens(read, shared):
    reader = read(model_page(stages_of(shared / "oracle" / "lstm_lm"), "prefill"))
    reader.toggle("layers.0/", "prefill")
    reader.toggle("layers.0.feedback.loop/", "prefill")
    assert "layers.0.feedback.loop/layers.0.h" in reader.drawn("prefill")
    assert reader.all('[data-stage="prefill"] .route.feedback')


def test_an_encoder_alone(read, shared):
    reader = read(model_page(stages_of(shared / "oracle" / "bert"), "traced"))
    assert [pane.get_attribute("data-stage") for pane in reader.all(".pane")] == ["passes", "score"]


def test_96_layers_open_and_expand_at_once(read, gpt3_page):
    """Times are generous: what is measured on a quiet machine stands in docs/inspecting.md."""
    reader = read(gpt3_page)
    assert "× 96" in reader.find('[data-stage="passes"] .item[data-key="layers.0-95/"]').text
    opened = float(reader.ask("return document.documentElement.dataset.ready"))
    reader.toggle("layers.0-95/")
    expanded = float(reader.ask("return document.documentElement.dataset.arranged"))
    reader.act("all", "layers.0-95/")
    unrolled = float(reader.ask("return document.documentElement.dataset.arranged"))
    assert len(reader.drawn() & {f"layers.{i}/" for i in range(96)}) == 96
    print(f"opened in {opened} ms, expanded in {expanded} ms, 96 layers in {unrolled} ms")
    assert max(opened, expanded, unrolled) < 10_000
    reader.ask(
        "for (const box of viewer.hierarchy('passes').boxes.values()) "
        "if (box.kind === 'scope') viewer.folding.open.add(box.key);"
        "viewer.arrange();"
    )
    assert reader.ask("return viewer.panes.get('passes').scene.views.length") > 5000
    assert len(reader.all('[data-stage="passes"] .item')) < 3000  # the rest is drawn when it comes near

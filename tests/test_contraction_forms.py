"""Forms of products: all give the same numbers, and the table that was measured chooses between them."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from systolic.backends.contractions import kept, measure
from systolic.backends.contractions.kept import keep_table, kept_table
from systolic.backends.contractions.sample import sample_arrays, sample_program
from systolic.backends.contractions.table import (
    FORMS,
    MARGIN,
    MOST,
    PACKAGED,
    WEIGHTS,
    Cell,
    FormTable,
    Setting,
    forced_table,
    packaged_table,
    parse_table,
)
from systolic.backends.interface import Lowered
from systolic.backends.processor import KINDS, Processor, in_words, this_processor
from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.xla import XlaBackend
from systolic.compiler.pipeline import run_passes
from systolic.ir.evaluate import evaluate
from systolic.ir.ops.packing import BLOCK
from systolic.models.load import load
from systolic.runner.executable import Executable
from systolic.runner.options import options_for
from systolic.runner.program_source import DerivedPrograms
from systolic.runner.programs import Programs

pytestmark = pytest.mark.optimised

# What each form may differ by, results being around 1: f32 is kept to its 24 bits, vectors beside narrow
# weights to 16, and many vectors to the 8 of bf16.
TOLERANCE = {"kernel": 2.0**-7, "rounded": 2.0**-7, "split": 2.0**-13}
SHAPES = [(1, 96, 64), (3, 64, 96), (4, 128, 80), (20, 160, 64)]


@pytest.fixture(scope="module")
def backend():
    return XlaBackend("cpu")


def run(backend, program, form):
    """The result of a sample in one form, and the text that it was compiled from."""
    text = emit_stablehlo(program, backend.kernels, forced_table(form))
    arrays = sample_arrays(program)
    results, _ = backend.load(Lowered(program, text)).run(arrays, arrays, {})
    return backend.fetch(results["y"]), text


@pytest.mark.parametrize(
    ("weights", "turned"), [*((weights, False) for weights in WEIGHTS), ("f32", True), ("bf16", True)]
)
@pytest.mark.parametrize(("rows", "width", "columns"), SHAPES)
def test_all_forms_give_the_product(backend, weights, turned, rows, width, columns):
    if weights in ("f32-packed", "bf16-packed"):
        width = -(-width // BLOCK) * BLOCK
    program = sample_program(Setting(weights, turned, False, rows, width, columns))
    forms = measure.forms_of(program, has_kernels=backend.kernels is not None)
    expected = evaluate(program.graph, sample_arrays(program))["y"]
    texts = set()
    for form in forms:
        got, text = run(backend, program, form)
        texts.add(text)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE.get(form, 1e-5), err_msg=form)
    assert len(texts) == len(forms)  # no form is another one by mistake


def test_forms_fit_where_they_can_be_written(backend):
    def forms(weights, rows, turned=False):
        program = sample_program(Setting(weights, turned, False, rows, 64, 64))
        return measure.forms_of(program, has_kernels=True)

    assert forms("f32", 1) == ("kernel", "dot")
    assert forms("bf16", 512) == ("kernel", "dot", "swapped", "split", "rounded")
    assert forms("f32", 4, turned=True) == ("kernel", "dot", "swapped", "apart")
    assert forms("int4", 512) == ("kernel", "dot", "swapped")
    assert {form for rows in (2, 16) for form in forms("bf16", rows)} == set(FORMS)


# ---- the choice ----


def table_of(*cells: tuple[Setting, dict[str, float]], near_bytes: int = 0) -> FormTable:
    return FormTable(tuple(Cell(setting, seconds) for setting, seconds in cells), near_bytes, "by hand")


def test_the_fastest_form_of_the_nearest_cell_is_chosen():
    few = Setting("f32", False, False, 1, 64, 64)
    many = Setting("f32", False, False, 64, 64, 64)
    near = Setting("f32", False, True, 1, 64, 64)
    turned = Setting("f32", True, False, 1, 64, 64)
    table = table_of(
        (few, {"kernel": 2.0, "dot": 3.0, "apart": 1.0}),
        (many, {"kernel": 2.0, "dot": 1.0}),
        (near, {"kernel": 3.0, "dot": 2.0, "apart": 1.0}),
        (turned, {"kernel": 1.0, "dot": 2.0}),
    )

    def choose(available=tuple(FORMS), **different):
        fields = {name: getattr(few, name) for name in few.__slots__}
        return table.choose(Setting(**{**fields, **different}), available)

    assert choose() == "apart"
    assert choose(("kernel", "dot")) == "kernel"
    assert choose(("dot",)) == "dot"
    assert choose(rows=6) == "apart"  # 2.6 doublings of 1, 3.4 halves of 64
    assert choose(rows=12) == "dot"
    assert choose(near=True, rows=6) == "apart"
    assert choose(near=True, rows=512) == "dot"  # the cell of 64 rows, wherever weights are
    assert choose(turned=True, columns=9999) == "kernel"
    assert choose(weights="bf16") == "kernel"  # nothing is known of it
    assert choose(("dot", "swapped"), weights="bf16") == "dot"


def test_what_is_hardly_faster_is_not_chosen():
    setting = Setting("f32", False, False, 1, 64, 64)
    table = table_of((setting, {"kernel": 1.0, "dot": 0.96}))
    assert table.choose(setting, ("kernel", "dot")) == "kernel"
    assert table_of((setting, {"kernel": 1.0, "dot": 0.94})).choose(setting, ("kernel", "dot")) == "dot"


def test_a_table_changes_the_text(backend):
    program = sample_program(Setting("bf16", False, False, 2, 64, 64))
    texts = {form: emit_stablehlo(program, None, forced_table(form)) for form in ("dot", "apart", "split")}
    assert [texts[form].count("dot_general") for form in texts] == [1, 2, 1]
    assert "reduce_precision" in texts["split"]
    assert texts["dot"] == emit_stablehlo(program)
    if backend.kernels is not None:
        assert "systolic_project" in emit_stablehlo(program, backend.kernels, forced_table("kernel"))
        assert texts["split"] == emit_stablehlo(program, backend.kernels, forced_table("split"))


def test_weights_of_a_loop_are_near_if_they_fit():
    far, near = (Setting("f32", False, place, 2, 64, 64) for place in (False, True))
    cells = (far, {"dot": 1.0, "apart": 2.0}), (near, {"dot": 2.0, "apart": 1.0})
    once, again = sample_program(far), sample_program(far, steps=3)
    for near_bytes, is_near in ((64 * 64 * 4 - 1, False), (64 * 64 * 4, True)):
        for program in (once, again):
            text = emit_stablehlo(program, None, table_of(*cells, near_bytes=near_bytes))
            assert text.count("dot_general") == (2 if is_near else 1)


@pytest.mark.parametrize("native", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("form", FORMS)
def test_stories_are_told_alike_in_every_form(shared, tmp_path, form, native):
    model = load(shared / "real" / "stories260K")
    case = json.loads((shared / "real" / "stories260K" / "reference.json").read_text())["cases"][0]
    options = options_for(model)
    backend = XlaBackend("cpu", native=native, forms=forced_table(form))
    source = DerivedPrograms(run_passes(model.graph, options.passes)[-1].graph, options)
    executable = Executable(model, options, backend, Programs(source, backend))
    assert executable.generate(case["prompt"], max_new_tokens=60, ignore_eos=True) == case["new_ids"][:60]


# ---- the data ----


@pytest.mark.parametrize("kind", sorted(file.stem for file in PACKAGED.glob("*.json")))
def test_a_packaged_table_is_whole(kind):
    table = packaged_table(kind)
    assert f" with {in_words(kind)}, " in table.source
    assert parse_table(table.to_text()) == table
    assert [cell.setting for cell in table.cells] == [setting for setting, _ in measure.grid()]
    assert table.near_bytes > 0
    for cell in table.cells:
        program = sample_program(cell.setting)
        assert tuple(cell.seconds) == measure.forms_of(program, has_kernels=True)
        assert all(math.isfinite(seconds) and seconds > 0 for seconds in cell.seconds.values())
        chosen = table.choose(cell.setting, tuple(FORMS))
        assert min(cell.seconds.values()) >= MARGIN * cell.seconds[chosen]


def test_a_measured_cell_has_the_time_of_every_form(backend):
    setting = Setting("int8", False, True, 2, 64, 64)
    with ThreadPoolExecutor(2) as threads:
        cell = measure.measured_cell(backend, setting, 1, threads)
    forms = measure.forms_of(sample_program(setting), has_kernels=backend.kernels is not None)
    assert cell.setting == setting
    assert tuple(cell.seconds) == forms
    assert all(seconds > 0 for seconds in cell.seconds.values())


def test_ratios_are_those_within_a_round():
    # A machine that is half as fast in each second round; one form in 3 quarters of the time, one hopeless.
    speeds = {name: iter([1.0, 1.0, *[1.0, 2.0] * 50]) for name in ("dot", "kernel", "apart")}
    times = {"dot": 0.04, "kernel": 0.03, "apart": 0.4}
    runs = {name: lambda name=name: times[name] * next(speeds[name]) for name in times}
    found = measure.compared_seconds(runs)
    assert found["kernel"] / found["dot"] == pytest.approx(0.75)
    assert found["apart"] / found["kernel"] == pytest.approx(0.4 / 0.03)
    assert next(speeds["apart"]) == next(speeds["apart"]) / 2  # it ran twice


def test_every_kind_of_machine_has_a_packaged_table():
    tables = {kind: packaged_table(kind) for kind in KINDS}
    assert tables["avx512"] != tables["avx2"]
    assert tables["sse"] == tables["neon"] == packaged_table() == tables[MOST]


def test_a_kept_table_belongs_to_its_machine(tmp_path):
    table = forced_table("apart")
    for kind in KINDS:
        assert kept_table("mine", kind, tmp_path) == packaged_table(kind)
    file = keep_table(table, "mine", tmp_path)
    assert kept_table("mine", "avx2", tmp_path) == table
    assert kept_table("another", "avx512", tmp_path) == packaged_table("avx512")
    file.write_bytes(b"damaged")
    assert kept_table("mine", "avx2", tmp_path) == packaged_table("avx2")


def test_a_backend_has_the_table_of_its_processor(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "default_cache_directory", lambda: tmp_path)
    for kind in ("avx512", "avx2"):
        monkeypatch.setattr(Processor, "kind", kind)
        there = XlaBackend("cpu", tmp_path)
        assert there.forms == packaged_table(kind)
        assert there.forms.digest in there.lowering


def test_tables_of_another_format_are_refused():
    other = json.loads(forced_table("dot").to_text()) | {"format": 0}
    with pytest.raises(ValueError, match="format 0, not 1"):
        parse_table(json.dumps(other))


def test_the_table_is_shown_and_measured(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "default_cache_directory", lambda: tmp_path)
    status, out, _ = cli("targets", "--forms")
    assert status == 0
    assert "up to 32 MiB of weights stay in the caches" in out
    assert len([line for line in out.splitlines() if " out × in " in line]) == sum(
        1 for setting, _ in measure.grid() if not setting.turned
    )
    monkeypatch.setattr(measure, "grid", lambda: iter([(Setting("f32", False, True, 1, 64, 64), 1)]))
    status, out, _ = cli("targets", "--forms", "--calibrate", "--json")
    (cell,) = json.loads(out)["cells"]
    assert (status, cell["rows"], "dot" in cell["seconds"]) == (0, 1, True)
    _, again, _ = cli("targets", "--forms", "--json")
    assert again == out
    assert cli("targets", "--forms", "--platform", "gpu")[0] == 2


def test_the_forms_of_a_model_are_shown(cli, shared):
    folder = shared / "real" / "stories260K"
    status, out, _ = cli("graph", folder, "--stage", "forms", "--json")
    records = json.loads(out)["forms"]
    assert (status, {record["program"] for record in records}) == (0, {"prefill", "decode"})
    decode = [record for record in records if record["program"] == "decode"]
    # Five layers of queries, outputs, gate, up and down, and the head; keys and values are too small.
    assert sum(record["times"] * record["products"] for record in decode) == 5 * 5 + 1
    assert {record["near"] for record in decode} == {True}
    table = packaged_table(this_processor().kind)
    for record in decode:
        setting = Setting(*(record[name] for name in Setting.__slots__))
        assert record["form"] in table.nearest(setting).seconds
    _, text, _ = cli("graph", folder, "--stage", "forms")
    assert "out × in [" in text
    assert cli("graph", folder, "--stage", "forms", "--format", "dot")[0] == 2

"""The chunks that prompts are read in: sizes by predicted seconds, and the same text whatever the cut."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

import systolic as sy
from systolic.backends.contractions.chunk_seconds import ATTENTION_SHARE, chunk_seconds
from systolic.backends.contractions.table import Cell, FormTable, Setting, packaged_table
from systolic.compiler.chunks import ENOUGH, SPARED, Chunk, choose_chunks, cut_prompt, nominal_seconds
from systolic.compiler.cost.prediction import chunk_seconds_on
from systolic.compiler.cost.targets import load_target
from systolic.compiler.pipeline import run_passes
from systolic.runner.options import Options


def total(chunks):
    return sum(chunk.seconds for chunk in chunks)


# ---- sizes ----


@st.composite
def machines(draw):
    """Seconds of a machine: a call, reading the weights, then each row, in tiles of rows."""
    call, read, row = (draw(st.floats(0.001, 1.0)) for _ in range(3))
    tile = draw(st.sampled_from([1, 4, 16, 64]))

    def seconds(size, behind):
        rows = -(-size // tile) * tile
        return call + max(read, row * rows) + 1e-5 * size * behind

    return seconds


@given(machines(), st.integers(1, 700))
@settings(max_examples=30, deadline=None)
def test_chosen_chunks_are_nearly_as_good_as_all_sizes(seconds, most):
    chunks = choose_chunks(seconds, most)
    sizes = [chunk.size for chunk in chunks]
    every = sorted({1 << power for power in range(10) if 1 << power <= most} | {most})
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert set(sizes) <= set(every)
    assert all(chunk.seconds == seconds(chunk.size, 0) for chunk in chunks)
    for length in range(1, sizes[-1] + 1):
        fits = min(seconds(size, 0) for size in every if length <= size <= sizes[-1])
        assert total(cut_prompt(length, chunks, 0.0)) <= SPARED * fits * (1 + 1e-9)


@given(machines(), st.integers(32, 700))
@settings(max_examples=30, deadline=None)
def test_the_largest_chunk_is_where_a_position_costs_no_less_any_more(seconds, most):
    largest = choose_chunks(seconds, most)[-1].size
    sizes = [size for size in (*(1 << power for power in range(5, 10)), most) if size <= most]
    each = {size: seconds(size, (most - size) // 2) / size for size in sizes}
    assert each[largest] <= ENOUGH * min(each.values())
    assert all(each[size] > ENOUGH * min(each.values()) for size in sizes if size < largest)
    assert choose_chunks(seconds, most, 24)[-1].size == 24


def test_where_reading_weights_is_all_that_costs_one_chunk_is_enough():
    chunks = choose_chunks(lambda size, behind: 1.0, 256)
    assert chunks == (Chunk(1, 1.0), Chunk(256, 1.0))


# ---- cuts ----

CHUNKS = (Chunk(1, 0.06), Chunk(4, 0.075), Chunk(16, 0.12), Chunk(32, 0.2), Chunk(256, 1.2))


@pytest.mark.parametrize(
    ("length", "sizes"),
    [
        (0, []),
        (1, [1]),
        (3, [4]),
        (16, [16]),
        (17, [16, 1]),
        (20, [32]),  # 16 and 4 are sooner by less than a program costs
        (33, [32, 1]),
        (48, [32, 16]),
        (256, [256]),
        (260, [256, 4]),
        (600, [256, 256, 32, 32, 32]),
    ],
)
def test_a_prompt_is_cut_by_predicted_seconds(length, sizes):
    assert [chunk.size for chunk in cut_prompt(length, CHUNKS)] == sizes


def test_programs_that_are_there_cost_nothing():
    assert [chunk.size for chunk in cut_prompt(20, CHUNKS, 0.0)] == [16, 4]


@given(st.integers(0, 900), st.lists(st.sampled_from([2, 4, 8, 16, 64, 100, 256]), unique=True), machines())
@settings(max_examples=100, deadline=None)
def test_cuts_cover_the_prompt_and_no_single_size_is_better(length, sizes, seconds):
    chunks = [Chunk(size, seconds(size, 0)) for size in sorted({1, *sizes})]
    cut = cut_prompt(length, chunks, 0.0)
    read = sum(chunk.size for chunk in cut)
    assert length <= read < length + max(chunk.size for chunk in chunks)
    assert all(a.size >= b.size for a, b in pairwise(cut))
    rest = length % chunks[-1].size
    alone = [-(-rest // chunk.size) * chunk.seconds for chunk in chunks]
    assert total(cut) <= length // chunks[-1].size * chunks[-1].seconds + min(alone) + 1e-9


def test_options_have_nominal_chunks_unless_they_are_chosen():
    options = Options(capacity=256, chunk=64)
    assert options.chunks == choose_chunks(nominal_seconds(1), 256, 64)
    assert options.chunk_sizes[-1] == 64
    assert sum(options.cut(150)) >= 150
    chosen = options.with_chunks(lambda size, behind: 1.0 + size, None)
    assert chosen.chunk == chosen.chunk_sizes[-1] == 64  # from where on a position costs no less
    assert options.with_chunks(nominal_seconds(1), 40).chunk_sizes[-1] == 40


# ---- the same text whatever the cut ----

chunk_sets = st.sets(st.sampled_from([2, 3, 4, 5, 8, 16]), max_size=3)


@pytest.mark.parametrize("step", [small_models.hybrid, small_models.window], ids=["hybrid", "window"])
def test_logits_and_tokens_do_not_depend_on_the_cut(step):
    executable = small_models.tiny(step, batch=2, chunk=16)
    base = executable.options

    @given(chunk_sets, machines(), st.lists(st.integers(0, small_models.V - 1), min_size=1, max_size=40))
    @settings(max_examples=40, deadline=None)
    def check(sizes, seconds, ids):
        chunks = tuple(Chunk(size, seconds(size, 0)) for size in sorted({1, *sizes, 16}))
        executable.options = replace(base, chunks=chunks)
        assert executable.options.chunks == chunks
        expected = executable.score(ids)
        rows = executable.batch()
        read = rows.read({0: ids, 1: ids[::2]})
        np.testing.assert_allclose(read[0], expected[-1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(read[1], executable.score(ids[::2])[-1], rtol=1e-4, atol=1e-4)
        assert executable.generate(ids, max_new_tokens=1) == [int(expected[-1].argmax())]

    check()


def test_a_checkpoint_says_the_same_however_its_prompt_is_cut(shared):
    model = sy.load(shared / "real" / "stories260K")
    prompt = [1, *range(300, 345)]
    tokens = {}
    for chunk in (None, 5, 16, 64):
        executable = sy.compile(model, capacity=96, chunk=chunk)
        assert sum(executable.options.cut(len(prompt))) >= len(prompt)
        tokens[chunk] = executable.generate(prompt, max_new_tokens=16, ignore_eos=True)
    assert len(set(map(tuple, tokens.values()))) == 1


# ---- predicted seconds ----


def table_of(each_row, each_weight, form="kernel"):
    """Products that take so long for each weight, and for each row and weight."""
    cells = [
        Cell(Setting(weights, False, False, rows, 64, 64), {form: 4096 * (each_weight + rows * each_row)})
        for weights in ("f32", "bf16", "int8")
        for rows in (1, 64)
    ]
    return FormTable(tuple(cells), 0, "made up")


def test_products_are_counted_where_their_results_are_wanted():
    """Of a model with two layers: the second's queries and the head are wanted at the last position alone."""

    def step(token):
        x = sy.take(sy.parameter("embedding", (256, 64)), token)
        for layer in range(2):
            q, k, v = (sy.parameter(f"{layer}.{name}", (64, 64)) @ x for name in "qkv")
            x = x + sy.softmax(sy.einsum("d,pd->p", q, sy.history(k))) @ sy.history(v)
        return {"logits": sy.parameter("head", (256, 64)) @ x}

    graph = run_passes(sy.trace(step))[-1].graph
    rows, size, weight = 3, 32, 1e-6

    def seconds(table):
        return chunk_seconds(graph, table, rows=rows, capacity=64, has_kernels=True)(size, 0)

    everywhere, last = 5 * 64 * 64, 64 * 64 + 256 * 64
    attended = 2 * 64 * rows * size * (size + 1) / 2 / ATTENTION_SHARE  # of the first layer
    by_row = seconds(table_of(weight, 0.0)) - seconds(table_of(0.0, 0.0))
    assert by_row == pytest.approx(weight * (everywhere * rows * size + last * rows + attended), rel=0.04)


def test_a_recurrence_pays_for_its_product_at_every_position():
    graph = run_passes(sy.trace(recurrence))[-1].graph
    table = table_of(0.0, 1e-6)
    seconds = chunk_seconds(graph, table, rows=1, capacity=64, has_kernels=True)
    assert seconds(33, 0) - seconds(1, 0) == pytest.approx(32 * 1e-6 * 64 * 64, rel=0.1)


def recurrence(token):
    x = sy.take(sy.parameter("embedding", (256, 64)), token)
    before = sy.feedback(sy.zeros((64,)))
    x = before.close(sy.tanh(x + sy.parameter("recurrent", (64, 64)) @ before))
    return {"logits": sy.parameter("head", (256, 64)) @ x}


def test_a_table_tells_seconds_between_what_was_measured():
    cells = [
        Cell(Setting("f32", False, False, 1, 512, 512), {"kernel": 1.0, "dot": 4.0}),
        Cell(Setting("f32", False, False, 8, 512, 512), {"kernel": 2.0, "dot": 3.0}),
        Cell(Setting("f32", False, False, 64, 512, 512), {"kernel": 20.0, "dot": 12.0}),
    ]
    table = FormTable(tuple(cells), 0, "made up")

    def seconds(rows, width=512, weights_first=False, has_kernels=True):
        return table.seconds(Setting("f32", weights_first, True, rows, width, 512), has_kernels=has_kernels)

    assert [seconds(rows) for rows in (1, 8, 64, 128)] == [1.0, 2.0, 12.0, 24.0]
    assert seconds(36) == 7.0  # halfway between 8 and 64
    assert seconds(8, width=1024) == 4.0  # twice as many weights
    assert seconds(1, has_kernels=False) == 3.0  # as long as eight rows: they could be empty
    assert seconds(1, weights_first=True) == 1.0  # nothing like it was measured
    slower = FormTable((*cells[:1], Cell(cells[1].setting, {"kernel": 9.0})), 0, "made up")
    assert slower.seconds(cells[1].setting, has_kernels=True) == 8.0  # eight times one row
    quicker = FormTable((Cell(cells[0].setting, {"kernel": 3.0}), cells[1]), 0, "made up")
    assert quicker.seconds(cells[0].setting, has_kernels=True) == 2.0  # one row of eight


@pytest.mark.parametrize("kind", ["avx512", "avx2"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_larger_chunks_take_longer_and_a_position_of_them_less(shared, dtype, kind):
    graph = run_passes(sy.load(shared / "real" / "stories260K", dtype).graph)[-1].graph
    seconds = chunk_seconds(graph, packaged_table(kind), rows=1, capacity=512, has_kernels=True)
    times = [seconds(1 << power, 0) for power in range(10)]
    assert times == sorted(times)
    assert all(2 * a > b for a, b in pairwise(times[:7]))
    assert seconds(16, 400) > seconds(16, 0)


def test_a_target_has_chunks_by_its_cost_model(shared):
    graph = run_passes(sy.load(shared / "real" / "stories260K").graph)[-1].graph
    chunks = choose_chunks(chunk_seconds_on(load_target("tpu-v5e"), graph, rows=1, capacity=128), 128)
    assert chunks[-1].size in (32, 64, 128)
    assert all(chunk.seconds > 0 for chunk in chunks)


# ---- where they are shown ----


def test_chunks_are_shown(cli, shared):
    stories = shared / "real" / "stories260K"
    status, out, _ = cli("graph", stories, "--stage", "chunks", "--json", "--chunk", 40)
    assert status == 0
    chunks = json.loads(out)["chunks"]
    assert [chunks[0]["positions"], chunks[-1]["positions"]] == [1, 40]
    assert all(chunk["seconds"] > 0 for chunk in chunks)
    _, text, _ = cli("graph", stories, "--stage", "chunks", "--target", "tpu-v5e", "--capacity", 64)
    assert text.startswith("tpu-v5e; rows side by side: 1\n\npositions  predicted ms  µs for a position\n")
    assert cli("graph", stories, "--stage", "chunks", "--format", "dot")[0] == 2

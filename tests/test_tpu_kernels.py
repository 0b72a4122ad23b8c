"""Kernels of our own on a TPU: what they compute, the tilings that are taken for them, and what both cost."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolic.backends import tpu, tpu_products
from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.stablehlo_text import location_text
from systolic.backends.tpu import Refusal, RefusedError, TpuProgram, _reason, compile_for_tpu, parse_target
from systolic.backends.tpu_hlo import Operation
from systolic.backends.tpu_kernels import kernel_config, multiply
from systolic.backends.tpu_products import (
    ComparedProduct,
    Measured,
    compare_products,
    kernels_text,
    measure_kernels,
    product_text,
)
from systolic.backends.tpu_selection import TpuKernels, products_of
from systolic.compiler.cost.kernels import (
    KernelTiling,
    Product,
    bound,
    kernel_tilings,
    moved_bytes,
    on_chip_bytes,
    one_tiling,
    pipeline_cycles,
    product_of,
    rank_tilings,
    tile_bytes,
    tiling_at,
)
from systolic.compiler.cost.targets import load_target
from systolic.compiler.pipeline import run_passes
from systolic.ir.errors import SystolicError
from systolic.models.load import load
from systolic.runner import tpu_report
from systolic.runner.commands.tpu_files import tpu_table
from systolic.runner.options import Options
from systolic.runner.product_kernels import ProductKernel, chosen_kernels, kernel_choices
from systolic.runner.program_source import DerivedPrograms
from systolic.runner.tpu_report import compile_reports, report_on

V5E = load_target("tpu-v5e")
DTYPES = {"bf16": ml_dtypes.bfloat16, "f32": np.float32, "i8": np.int8, "i32": np.int32}


# ---- what a kernel computes, in Pallas's interpreter ----


def operands(product: Product, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rhs = (product.n, product.k) if product.is_transposed else (product.k, product.n)
    shapes = (product.m, product.k), rhs
    if product.lhs == "i8":
        return tuple(rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes)
    numbers = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return numbers[0].astype(DTYPES[product.lhs]), numbers[1].astype(DTYPES[product.rhs])


def check_against_numpy(product: Product, tiling: KernelTiling, seed: int = 0) -> None:
    lhs, rhs = operands(product, seed)
    found = np.asarray(multiply(lhs, rhs, product, tiling, interpret=True))
    assert found.dtype == DTYPES[product.result]
    wide = np.int64 if product.lhs == "i8" else np.float64
    left, right = lhs.astype(DTYPES[product.rhs]).astype(wide), rhs.astype(wide)
    expected = left @ (right.T if product.is_transposed else right)
    if product.lhs == "i8":
        assert np.array_equal(found, expected)
        return
    # Sums of k products of normal numbers, in f32; a result in bf16 is rounded to 8 bits once.
    rounding = 2.0**-8 * np.abs(expected) if product.result == "bf16" else 0.0
    error = np.abs(found.astype(np.float64) - expected)
    assert np.all(error <= rounding + 2.0**-20 * product.k)


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 5), st.integers(1, 300)),
    tile=st.tuples(st.sampled_from([16, 32, 64]), st.integers(1, 2), st.sampled_from([128, 256])),
    order=st.sampled_from(["nmk", "mnk"]),
    dtypes=st.sampled_from([("bf16", "bf16", "bf16"), ("f32", "bf16", "f32"), ("i8", "i8", "i32")]),
    is_transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_kernel_computes_what_numpy_does(sizes, tile, order, dtypes, is_transposed, seed):
    m, k, n = sizes
    product = Product(m, 128 * k, n, *dtypes, is_transposed)
    depth = 128 * (tile[1] if k % tile[1] == 0 else k)
    check_against_numpy(product, KernelTiling(tile[0], depth, tile[2], order), seed)


@pytest.mark.parametrize(("k", "is_transposed"), [(300, True), (200, False)])
def test_what_lies_beyond_k_is_not_added(k, is_transposed):
    # In the interpreter, as in a TPU's memory, an edge holds whatever was there: here, no numbers.
    product = Product(24, k, 130, "f32", "f32", "f32", is_transposed)
    check_against_numpy(product, KernelTiling(16, 128, 128))


def test_f32_vectors_are_rounded_to_what_the_weights_are():
    product = Product(16, 256, 128, "f32", "bf16", "f32")
    lhs, rhs = operands(product, 3)
    found = np.asarray(multiply(lhs, rhs, product, KernelTiling(16, 128, 128), interpret=True))
    exact = lhs.astype(np.float64) @ rhs.astype(np.float64).T
    rounded = lhs.astype(ml_dtypes.bfloat16).astype(np.float64) @ rhs.astype(np.float64).T
    assert np.abs(found - rounded).max() < 1e-4 < np.abs(found - exact).max()


@pytest.mark.parametrize("sizes", [(1, 768, 500), (200, 400, 300), (300, 512, 384)])
def test_what_the_search_takes_computes_the_product(sizes):
    product = product_of(*sizes, "bf16")
    check_against_numpy(product, rank_tilings(product, V5E)[0].tiling)


# ---- the tilings, and what they cost ----


def test_tilings_fit_and_cut_k_evenly():
    product = product_of(512, 4096, 14336, "bf16")
    found = kernel_tilings(product, V5E.compiler)
    assert np.all(on_chip_bytes(found, product) < V5E.compiler.scoped_bytes)
    assert np.all(product.k % found.k == 0)
    assert {tiling_at(found, i) for i in range(len(found))} >= {KernelTiling(512, 512, 2048)}
    with pytest.raises(SystolicError, match=r"no tiling of .* fits into 1,049,000 bytes"):
        kernel_tilings(product, replace(V5E.compiler, scoped_bytes=1_049_000))


def test_bytes_follow_from_the_order_of_the_loops():
    product = product_of(512, 1024, 2048, "bf16")
    lhs, rhs, result = 2 * 512 * 1024, 2 * 1024 * 2048, 2 * 512 * 2048

    def moved(*tiling) -> int:
        one = one_tiling(product, KernelTiling(*tiling))
        return int(moved_bytes(one, tile_bytes(one, product))[0])

    assert moved(128, 1024, 256, "nmk") == 8 * lhs + rhs + result
    assert moved(128, 1024, 256, "mnk") == lhs + 4 * rhs + result
    assert moved(512, 1024, 256) == lhs + rhs + result
    assert moved(128, 256, 256) == 8 * lhs + 4 * rhs + result


def test_a_step_waits_for_the_longest_of_work_memory_and_half_a_round():
    product = product_of(16, 4096, 4096, "bf16")
    one = one_tiling(product, KernelTiling(16, 4096, 128))
    compiler = replace(V5E.compiler, bytes_per_cycle=1e12, step_cycles=0.0)
    tiles = tile_bytes(one, product)
    assert pipeline_cycles(one, tiles, np.array([32_000]), compiler)[0] == pytest.approx(32_000)
    late = replace(compiler, step_cycles=5000.0)
    assert pipeline_cycles(one, tiles, np.array([32_000]), late)[0] == pytest.approx(5000 + 31 * 3000 + 1000)
    slow = replace(compiler, bytes_per_cycle=10.0)
    moved = moved_bytes(one, tiles)[0] / 10
    assert pipeline_cycles(one, tiles, np.array([32_000]), slow)[0] == pytest.approx(moved + 1000, rel=1e-3)


def test_a_target_without_figures_has_no_kernels():
    with pytest.raises(SystolicError, match="target tpu-v2 has no figures of kernels of our own"):
        rank_tilings(product_of(8, 128, 128, "bf16"), load_target("tpu-v2"))


# ---- in StableHLO of our own ----


def test_a_kernel_is_one_string_that_does_not_change():
    product, tiling = product_of(32, 256, 256, "bf16"), KernelTiling(32, 256, 128)
    text = kernel_config(product, tiling)
    assert text.startswith('"{')
    assert text != kernel_config(product, replace(tiling, n=256))
    kernel_config.cache_clear()
    assert text == kernel_config(product, tiling)


def test_programs_of_products_are_stablehlo():
    from jax.extend.mlir import ir
    from jax.interpreters import mlir

    square = product_of(256, 256, 256, "bf16")
    mixed = Product(1, 256, 512, "f32", "bf16", "f32")
    texts = [product_text(square), product_text(mixed), product_text(product_of(64, 128, 128, "i8", False))]
    texts.append(kernels_text([(square, KernelTiling(128, 256, 128)), (mixed, KernelTiling(16, 256, 512))]))
    with mlir.make_ir_context():
        for text in texts:
            assert ir.Module.parse(text).operation.verify()


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    file = tmp_path_factory.mktemp("gpt2") / "config.json"
    config = {"model_type": "gpt2", "vocab_size": 512, "n_embd": 128, "n_layer": 1, "n_head": 2}
    file.write_text(json.dumps(config | {"n_positions": 1024}))
    graph = run_passes(load(file, "bf16").graph)[-1].graph
    return DerivedPrograms(graph, Options(capacity=64, chunk=16)).chunk(1)


def test_products_of_a_program_are_its_matmuls_with_weights(decode):
    found = {node.name: product for node, product in products_of(decode.graph).items()}
    assert {product.name for product in found.values()} >= {
        "f32[1,128]·bf16[128,384]",
        "f32[1,128]·bf16[128,512]",
        "f32[1,512]·bf16[512,128]",
        "f32[1,128]·bf16[512,128]ᵀ",
    }
    assert "layers.0.attn.contraction" in found
    assert len(found) == 5, "scores and mixed values are no product with weights"


def test_a_program_calls_the_kernels_that_it_is_given(decode):
    found = products_of(decode.graph)
    node, product = next((n, p) for n, p in found.items() if n.name == "layers.0.mlp.contraction")
    kernels = TpuKernels({product: rank_tilings(product, V5E)[0].tiling})
    before, after = emit_stablehlo(decode), emit_stablehlo(decode, kernels)
    assert (before.count("tpu_custom_call"), after.count("tpu_custom_call")) == (0, 1)
    line = next(line for line in after.splitlines() if "tpu_custom_call" in line)
    assert line.rstrip().endswith(location_text(node))
    assert ": (tensor<1x128xf32>, tensor<128x512xbf16>) -> tensor<1x512xf32>" in line
    assert emit_stablehlo(decode, TpuKernels({})) == before


# ---- whose kernel is taken ----


def compared(ours: float, compilers: float) -> ProductKernel:
    product = Product(1, 4096, 4096, "f32", "bf16", "f32")
    choice = rank_tilings(product, V5E)[0]
    sides = [Measured(cycles, 100, 1000) for cycles in (ours, compilers)]
    return ProductKernel(("a", "b"), ComparedProduct(product, choice, *sides, bound(product, V5E)), 50.0)


def test_programs_are_tried_with_no_kernels_with_those_that_pay_and_with_all_that_win():
    pays, wins, loses = (compared(ours, 1000) for ours in (900, 960, 1100))
    refused = replace(wins, compared=replace(wins.compared, kernel=Refusal("too large")))
    tried = kernel_choices((pays, wins, loses, refused))
    assert [[each.is_ours for each in choice] for choice in tried] == [
        [False, False, False, False],
        [True, False, False, False],
        [True, True, False, False],
    ]
    assert [sum(each.cycles for each in choice) for choice in tried] == [8000, 7800, 7720]  # two nodes each
    assert len(kernel_choices((loses,))) == 1
    assert kernel_choices(()) == [()]


def test_only_kernels_of_ours_are_emitted():
    used = replace(compared(900, 1000), is_ours=True)
    assert used.to_json()["kernel"] == "ours"
    assert list(chosen_kernels([used]).tilings) == [used.compared.product]
    assert not chosen_kernels([replace(used, is_ours=False)]).tilings


# ---- what the compiler refuses ----


def scheduled_hlo(text: str) -> str:
    """As the compiler would write it: a call for each kernel of a program, 3,082 cycles each."""
    calls = [
        f'  %call.{i} = f32[8]{{0}} custom-call(%x), custom_call_target="tpu_custom_call", '
        f'metadata={{op_name="{name}"}}, '
        'backend_config={"bundle_analysis_data":{"estimated_cycles":"3082"}}'
        for i, name in enumerate(re.findall('kernel_name = "(.*?)"', text))
    ]
    entry = "\n".join(["  %x = f32[8]{0} parameter(0)", *calls])
    return f"HloModule kernels, is_scheduled=true\n\nENTRY %main.1 (x: f32[8]) -> f32[8] {{\n{entry}\n}}\n"


def compiler_without(refused: str):
    """A compiler that refuses programs with a certain text."""

    def compile_(texts, target, **settings):
        if any(refused in text for text in texts.values()):
            raise RefusedError("libtpu cannot compile: CompileTimeScopedVmemOom")
        return {
            name: TpuProgram(scheduled_hlo(text), {"temp_bytes": 0}, None, None, None, 0.0)
            for name, text in texts.items()
        }

    return compile_


def test_a_refused_kernel_is_told_apart_from_the_others(monkeypatch):
    small, large = product_of(256, 256, 256, "bf16"), product_of(512, 512, 512, "bf16")
    kernels = [(product, KernelTiling(256, 256, 256)) for product in (small, large, small)]
    monkeypatch.setattr(tpu_products, "compile_for_tpu", compiler_without("512x512"))
    first, second, third = measure_kernels(kernels, parse_target("tpu-v5e"), V5E.compiler)
    assert first.scheduled_cycles == third.scheduled_cycles == 3082
    assert second == Refusal("libtpu cannot compile: CompileTimeScopedVmemOom")


def test_of_several_tilings_that_are_tried_the_fastest_is_taken(monkeypatch):
    product = product_of(512, 2048, 2048, "bf16")
    tried = [choice.tiling for choice in rank_tilings(product, load_target("tpu-v6e"), 6)]
    found = [Refusal("too large"), *(Measured(float(cycles), 1, 1) for cycles in (500, 300, 700, 800, 900))]
    monkeypatch.setattr(tpu_products, "measure_kernels", lambda kernels, *_: found)
    monkeypatch.setattr(tpu_products, "measure_emitters", lambda products, *_: [Measured(400.0, 1, 1)])
    (compared,) = compare_products([product], parse_target("tpu-v6e"))
    assert (compared.kernel.cycles, compared.choice.tiling) == (300, tried[2])


@pytest.fixture
def winning(decode, monkeypatch) -> ProductKernel:
    """A product of a decode step for which our kernel is much faster by itself."""
    node, product = next((n, p) for n, p in products_of(decode.graph).items() if p.n == 512)
    choice = rank_tilings(product, V5E)[0]
    sides = Measured(100, 100, 1000), Measured(10_000, 100, 1000)
    found = ProductKernel((node.name,), ComparedProduct(product, choice, *sides, bound(product, V5E)), 50.0)
    monkeypatch.setattr(tpu_report, "compare_kernels", lambda *_: {decode.name: (found,)})
    return found


def test_a_program_uses_the_kernels_with_which_it_takes_the_least(decode, winning, monkeypatch):
    monkeypatch.setattr(tpu, "compile_for_tpu", compiler_without("nothing"))
    texts, (report,) = compile_reports([decode], parse_target("tpu-v5e"), own_kernels=True)
    assert "@tpu_custom_call" in texts[decode.name]
    assert [each.is_ours for each in report.products] == [True]
    assert report.measured_cycles == 100


def test_a_program_that_is_refused_with_our_kernels_is_compiled_without(decode, winning, monkeypatch):
    monkeypatch.setattr(tpu, "compile_for_tpu", compiler_without("@tpu_custom_call"))
    texts, (report,) = compile_reports([decode], parse_target("tpu-v5e"), own_kernels=True)
    assert "@tpu_custom_call" not in texts[decode.name]
    assert [(each.is_ours, each.refusal) for each in report.products] == [
        (False, "libtpu cannot compile: CompileTimeScopedVmemOom")
    ]
    assert report.products[0].to_json()["ours"] is None
    product, tiling = winning.compared.product, winning.compared.choice.tiling
    shown = tpu_table([report], parse_target("tpu-v5e"))
    assert f"{product.name}, {tiling}, is left to it: libtpu cannot compile: CompileTime" in shown


def test_a_program_that_is_refused_without_our_kernels_is_an_error(decode, monkeypatch):
    monkeypatch.setattr(tpu, "compile_for_tpu", compiler_without("stablehlo"))
    with pytest.raises(RefusedError, match="VmemOom"):
        compile_reports([decode], parse_target("tpu-v5e"))


def test_the_reason_of_a_refusal_is_one_sentence():
    crashed = (
        "F1128 15:27:32.9 13744 llo_dumper.cc:1585] Static LLO profiling failed: INVALID\nPC: @ 0x7f main"
    )
    assert _reason(crashed) == "Static LLO profiling failed: INVALID"
    raised = "Traceback\njaxlib._jax.XlaRuntimeError: RESOURCE_EXHAUSTED: E1001: too much\n"
    assert _reason(raised) == "RESOURCE_EXHAUSTED: E1001: too much"


def test_cycles_of_the_schedule_are_read_from_the_configuration():
    config = {"bundle_analysis_data": {"estimated_cycles": "2285"}}
    assert Operation("k", "custom-call", (), (), "", (), config).scheduled_cycles == 2285
    assert Operation("k", "custom-call", (), (), "", (), {}).scheduled_cycles is None


# ---- the command, and the compiler itself ----


def test_without_libtpu_one_sentence_says_what_to_install(cli, monkeypatch):
    monkeypatch.setattr("systolic.backends.tpu.find_spec", lambda name: None)
    status, out, err = cli("cost", "--matmul", "16,768,2304", "--target", "tpu-v5e", "--compare-xla")
    assert (status, out) == (2, "")
    assert "needs libtpu: pip install 'systolic[tpu]'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--transposed",), "--transposed belongs to --matmul M,K,N --compare-xla"),
        (("--compare-xla", "--target", "tpu-v2"), "target 'tpu-v2' has no compiler"),
        (("--compare-xla", "--dtype", "f16"), "dtype 'f16' has no kernel of ours; expected"),
    ],
)
def test_what_cannot_be_compared_is_told(cli, arguments, message):
    status, _, err = cli("cost", "--matmul", "16,768,2304", *arguments)
    assert status == 2
    assert message in err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: extra tpu")
def test_the_real_compiler_takes_the_kernel_and_agrees_with_the_prediction(cli):
    status, out, err = cli("cost", "--matmul", "64,768,2304", "--compare-xla", "--transposed", "--json")
    assert status == 0, err
    found = json.loads(out)["compare_xla"]
    kernel = found["kernel"]
    assert kernel["scheduled_cycles"] == pytest.approx(kernel["predicted_scheduled_cycles"], rel=0.1)
    assert kernel["cycles"] == pytest.approx(kernel["predicted_cycles"], rel=0.1)
    assert found["bound"]["cycles"] < min(kernel["cycles"], found["emitter"]["cycles"])
    assert found["emitter"]["estimated_cycles"] > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: extra tpu")
def test_the_real_compiler_takes_a_program_with_our_kernels(decode):
    products = set(products_of(decode.graph).values())
    kernels = TpuKernels({product: rank_tilings(product, V5E)[0].tiling for product in products})
    text = emit_stablehlo(decode, kernels, states_row_major=True)
    compiled = compile_for_tpu({"decode": text}, parse_target("tpu-v5e"))["decode"]
    report = report_on(decode, compiled)
    calls = [op.node for op, _ in report.module.scheduled if op.opcode == "custom-call"]
    assert set(calls) >= {node.name for node in products_of(decode.graph)}
    assert all(state.is_in_place for state in report.states)

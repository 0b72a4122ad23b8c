"""The TPU compiler without a TPU: its HLO read, states audited, cycles joined with predictions by name."""

from __future__ import annotations

import importlib.util
import json

import pytest

import systolic as sy
from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.tpu import TpuProgram, compile_for_tpu, parse_target
from systolic.backends.tpu_hlo import parse_module
from systolic.compiler.cost import load_target
from systolic.compiler.cost.comparison import Estimate, compare
from systolic.compiler.cost.prediction import plan_program, predict
from systolic.compiler.passes.gather_kept import gather_kept
from systolic.compiler.pipeline import run_passes
from systolic.ir.errors import SystolicError
from systolic.models.load import load
from systolic.runner.options import Options
from systolic.runner.program_source import DerivedPrograms
from systolic.runner.tpu_report import audit, findings, report_on

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 512,
    "n_embd": 128,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 1024,
}
# As libtpu 0.0.42 writes it for v5e, of a decode step with one layer: shortened, names and forms kept.
HLO = """\
HloModule decode, is_scheduled=true, \
input_output_alias={ {1}: (@K, {}, may-alias), {2}: (@V, {}, may-alias) }, \
entry_computation_layout={(f32[1,2,64,64]{3,2,1,0:T(8,128)})->f32[1,1,512]{2,1,0:T(1,128)}}

%fused_computation.6 (param_0.6: f32[2,64,64], param_1.2: f32[2,64]) -> f32[2,64,64] {
  %param_0.6 = f32[2,64,64]{2,1,0:T(8,128)} parameter(0)
  %param_1.2 = f32[2,64]{1,0:T(8,128)} parameter(1)
  ROOT %scatter.4 = f32[2,64,64]{2,1,0:T(8,128)} scatter(%param_0.6, %param_1.2), update_window_dims={1}, \
to_apply=%region_2.3, metadata={op_name="layers.0.attn.k" stack_frame_id=69}
}

%fused_computation.7 (param_0.7: f32[128], param_1.7: bf16[128,384]) -> (f32[384], f32[384]) {
  %param_0.7 = f32[128]{0:T(128)} parameter(0)
  %multiply.9 = f32[384]{0:T(512)} multiply(%param_0.7, %param_0.7), \
metadata={op_name="layers.0.attn.contraction"}
  %reduce.1 = f32[384]{0:T(512)} reduce(%multiply.9), metadata={op_name="layers.0.attn.add.2;layers.0.attn.q"}
  ROOT %tuple.1 = (f32[384]{0:T(512)}, /*index=1*/f32[384]{0:T(512)}) tuple(%multiply.9, %reduce.1)
}

%body.1 (arg: (s32[])) -> (s32[]) {
  %arg.1 = (s32[]{:T(128)}) parameter(0)
  ROOT %multiply_fusion.3 = f32[8,8]{1,0:T(8,128)} fusion(%arg.1), kind=kLoop, calls=%fused_computation.7, \
metadata={op_name="layers.0.mlp.contraction"}, backend_config={"window_config":{"estimated_cycles":"10"}}
}

ENTRY %main.99 (token_.1: s32[1,1], state_k.1: f32[1,2,64,64]) -> (f32[384], f32[1,2,64,64]) {
  %token_.1 = s32[1,1]{1,0:T(1,128)} parameter(0), metadata={op_name="token"}
  %state_k.1 = f32[1,2,64,64]{3,2,1,0:T(8,128)} parameter(1), metadata={op_name="state.layers.0.attn.k"}
  %state_v.1 = f32[1,2,64,64]{3,2,1,0:T(8,128)} parameter(2), metadata={op_name="state.layers.0.attn.v"}
  %multiply_reduce_fusion.4 = (f32[384]{0:T(512)S(1)}, f32[384]{0:T(512)}) fusion(%token_.1, %state_k.1), \
kind=kOutput, calls=%fused_computation.7, metadata={op_name="layers.0.attn.contraction" stack_frame_id=1}, \
backend_config={"flag_configs":[],"window_config":{"kernel_window_bounds":["96","18"],\
"output_window_bounds":["1","18"],"input_window_bounds":[],"estimated_cycles":"25900",\
"iteration_bounds":["1","2"]},"convolution_algorithm_config":{"emitter":"EmitAllBatchInSublanes"}}
  %bitcast.1 = f32[2,64,64]{2,1,0:T(8,128)} bitcast(%state_k.1)
  %scatter_fusion.6 = f32[2,64,64]{2,1,0:T(8,128)} fusion(%bitcast.1, %token_.1), kind=kCustom, \
calls=%fused_computation.6, metadata={op_name="layers.0.attn.k" stack_frame_id=69}
  %copy-start.1 = (f32[2,64,64]{2,1,0:T(8,128)S(1)}, f32[2,64,64]{2,1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%scatter_fusion.6)
  %copy-done.1 = f32[2,64,64]{2,1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %while.1 = (s32[]{:T(128)}) while(%copy-done.1), condition=%cond.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"5"}}
@MORE  %custom-call.1 = bf16[128,128]{1,0:T(8,128)(2,1)S(1)} custom-call(%copy-done.1), \
custom_call_target="ConcatBitcast", backend_config={"flag_configs":[]}
  %bitcast.2 = f32[1,2,64,64]{3,2,1,0:T(8,128)} bitcast(%scatter_fusion.6)
  ROOT %tuple.9 = (f32[384]{0:T(512)}, f32[1,2,64,64]{3,2,1,0:T(8,128)}) tuple(%bitcast.2, %bitcast.2)
}

%cond.1 (arg: (s32[])) -> pred[] {
  ROOT %lt = pred[]{:T(512)} constant(false)
}
"""
TRANSPOSED = """\
  %copy.51 = f32[1,2,64,64]{2,3,1,0:T(8,128)} copy(%state_v.1), metadata={op_name="state.layers.0.attn.v"}, \
backend_config={"window_config":{"estimated_cycles":"18492"}}
"""
WRITTEN_BACK = """\
  %copy-start.3 = (f32[2,64,64]{2,1,0:T(8,128)}, f32[2,64,64]{2,1,0:T(8,128)S(1)}, u32[]{:S(2)}) \
copy-start(%copy-done.1)
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    file = tmp_path_factory.mktemp("gpt2") / "config.json"
    file.write_text(json.dumps(GPT2))
    return run_passes(load(file, "bf16").graph)[-1].graph


@pytest.fixture(scope="module")
def decode(graph):
    return DerivedPrograms(graph, Options(capacity=64, chunk=16)).chunk(1)


def reported(decode, more: str = "", text: str = HLO, temporaries: int = 0, seconds: float = 0.25):
    arguments = [node.name for node in (*decode.graph.parameters, *decode.graph.inputs)]
    places = {"@K": arguments.index("state.layers.0.attn.k"), "@V": arguments.index("state.layers.0.attn.v")}
    text = text.replace("@MORE", more)
    for mark, place in places.items():
        text = text.replace(mark, str(place))
    return report_on(decode, TpuProgram(text, {"temp_bytes": temporaries}, seconds, None, None, 1.0))


# ---- reading HLO ----


def test_an_operation_has_our_names_the_tiles_and_the_cycles(decode):
    report = reported(decode)
    operation = next(op for op, _ in report.module.scheduled if op.name == "multiply_reduce_fusion.4")
    assert operation.node == "layers.0.attn.contraction"
    assert report.nodes(operation) == ("layers.0.attn.contraction", "layers.0.attn.add.2")
    assert operation.cycles == 25900
    assert operation.windows == {"kernel": (96, 18), "output": (1, 18), "iteration": (1, 2)}
    assert operation.emitter == "EmitAllBatchInSublanes"
    assert operation.operands == ("token_.1", "state_k.1")
    on_chip, in_hbm = operation.arrays
    assert (on_chip.shape, on_chip.bytes, on_chip.is_on_chip, in_hbm.is_on_chip) == (
        (384,),
        1536,
        True,
        False,
    )
    assert on_chip.order == in_hbm.order


def test_a_loop_counts_as_often_as_it_runs(decode):
    report = reported(decode)
    assert report.cycles == 25900 + 5 * 10
    assert report.unestimated == {"fusion": 1, "copy-start": 1, "while": 1, "custom-call": 1}


def test_aliases_are_read_from_the_header():
    module = parse_module(HLO.replace("@K", "7").replace("@V", "8").replace("@MORE", ""))
    assert module.aliases == {1: 7, 2: 8}


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_module("HloModule empty")


def test_seconds_that_custom_calls_made_negative_are_mended(decode):
    assert reported(decode, seconds=-0.75).optimal_seconds == pytest.approx(0.25)
    assert reported(decode, seconds=-3.5).optimal_seconds is None


# ---- the audit ----


def test_updates_and_reads_on_chip_are_in_place(decode):
    report = reported(decode)
    assert [state.is_in_place for state in report.states] == [True, True]
    assert findings([report], 0) == []


@pytest.mark.parametrize(
    ("more", "state", "copy"),
    [(TRANSPOSED, "layers.0.attn.v", "copy.51"), (WRITTEN_BACK, "layers.0.attn.k", "copy-start.3")],
    ids=["transposed", "written back"],
)
def test_a_state_that_is_copied_is_found(decode, more, state, copy):
    report = reported(decode, more)
    assert {use.name: use.copies for use in report.states if use.copies} == {state: (copy,)}
    with pytest.raises(SystolicError, match=rf"decode copies 1 of 2 states \({state}\); --lenient"):
        audit([report], 0)


def test_a_state_whose_result_has_memory_of_its_own_is_found(decode):
    report = reported(decode, text=HLO.replace("{2}: (@V, {}, may-alias)", ""))
    assert [(use.name, use.is_aliased) for use in report.states] == [
        ("layers.0.attn.k", True),
        ("layers.0.attn.v", False),
    ]
    assert "copies 1 of 2 states" in findings([report], 0)[0]


def test_temporaries_have_a_bound(decode):
    assert findings([reported(decode, temporaries=2_000_000)], 2_000_000) == []
    (found,) = findings([reported(decode, temporaries=3_000_000)], 2_000_000)
    assert found == "decode needs 3 MB of temporaries, more than 2 MB"


def test_layout_copies_say_from_what_to_what(decode):
    (copy,) = reported(decode, TRANSPOSED).layout_copies
    assert (copy.before, copy.after) == ("{3,2,1,0:T(8,128)}", "{2,3,1,0:T(8,128)}")
    assert (copy.shape, copy.bytes, copy.cycles) == ("f32[1,2,64,64]", 4 * 2 * 64 * 64, 18492)


def test_states_can_be_given_a_layout(decode):
    text = emit_stablehlo(decode, states_row_major=True)
    assert text.count('mhlo.layout_mode = "{3,2,1,0}"') == 2 * len(decode.donated)
    assert "layout_mode" not in emit_stablehlo(decode)


def test_rows_of_a_table_are_taken_as_they_are_kept(decode):
    def embed(token):
        table = sy.parameter("table", (23, 8), "bf16")
        return {"row": sy.take(sy.cast(table, "f32"), token).named("row")}

    def taken(graph):
        return {n.name: (n.op.name, n.sources[0].name, n.tensor.dtype) for n in graph if n.name in names}

    graph, names = sy.trace(embed), ("row", "row.f32")
    assert len(run_passes(graph, (gather_kept,), check=True)) == 2  # values are compared
    assert taken(graph)["row"][::2] == ("take", "f32")
    assert taken(gather_kept(graph)) == {"row": ("take", "table", "bf16"), "row.f32": ("cast", "row", "f32")}
    names = ("embed.take", "embed.take.f32")  # a model that is loaded with weights in fewer bits
    assert list(taken(decode.graph).values()) == [
        ("take", "transformer.wte.weight", "bf16"),
        ("cast", "embed.take", "f32"),
    ]


# ---- beside the prediction ----


@pytest.fixture(scope="module")
def prediction(graph):
    return predict(plan_program(graph, load_target("tpu-v5e"), context=64), 1)


def test_cycles_are_joined_by_the_names_of_nodes(prediction):
    qkv, up = (
        next(r for r in prediction.regions if r.name == f"layers.0.{name}.contraction")
        for name in ("attn", "mlp")
    )
    found = compare(
        prediction,
        [
            Estimate("a", qkv.name, (qkv.name, *qkv.nodes[:2]), 70),
            Estimate("b", qkv.nodes[-1], (), 7),
            Estimate("c", up.name, (up.name,), 500),
            Estimate("d", "weights.f32", ("weights.f32",), 1000),
        ],
    )
    named = {both.regions: both for both in found}
    assert named[qkv.name,].operations == ("a", "b")
    assert named[qkv.name,].estimated == 77
    clock = prediction.plan.machine.clock
    assert named[up.name,].predicted == pytest.approx(
        prediction.costs[prediction.regions.index(up)].seconds * clock
    )
    assert (named[()].scope, named[()].estimated, named[()].ratio) == ("weights", 1000, 0.0)
    assert sum(both.estimated for both in found) == 1577
    assert [both.difference for both in found] == sorted((both.difference for both in found), reverse=True)
    everything = sum(both.predicted for both in found) + prediction.plan.machine.launch_seconds * clock
    assert everything == pytest.approx(prediction.cycles)


def test_regions_in_one_fusion_are_compared_together(prediction):
    first, second = (r.name for r in prediction.regions if r.scope == "layers.0.mlp" and r.products)
    (both,) = (b for b in compare(prediction, [Estimate("f", first, (first, second), 9)]) if b.operations)
    assert set(both.regions) == {first, second}


# ---- targets and the compiler itself ----


def test_targets_name_a_topology():
    assert parse_target("tpu-v5e").topology == "v5e:2x2"
    assert parse_target("tpu-7x").topology == "tpu7x:2x2x1"
    assert parse_target("tpu-v5e:4x4").topology == "v5e:4x4"
    assert parse_target("tpu-v4:2x2x1:megacore").chip == "megacore"


@pytest.mark.parametrize("target", ["tpu-v9", "gpu", "tpu-v5e:", "tpu-v5e:two"])
def test_a_target_that_has_no_compiler_is_refused(target):
    with pytest.raises(SystolicError, match=r"target '.*' has no .*expected one"):
        parse_target(target)


def test_without_libtpu_one_sentence_says_what_to_install(cli, monkeypatch, tmp_path):
    monkeypatch.setattr("systolic.backends.tpu.find_spec", lambda name: None)
    status, _, err = cli("compile", "shakespeare", "--target", "tpu-v5e", "--out", tmp_path / "out")
    assert status == 2
    assert "needs libtpu: pip install 'systolic[tpu]'" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: extra tpu")
def test_the_real_compiler_updates_states_in_place(graph):
    decode = DerivedPrograms(graph, Options(capacity=1024)).chunk(1)
    compiled = compile_for_tpu(
        {"decode": emit_stablehlo(decode, states_row_major=True)}, parse_target("tpu-v5e")
    )
    report = report_on(decode, compiled["decode"])
    assert [state.is_in_place for state in report.states] == [True, True]
    assert any(op.node == "layers.0.mlp.contraction" and op.cycles for op, _ in report.module.scheduled)
    chosen = compile_for_tpu({"decode": emit_stablehlo(decode)}, parse_target("tpu-v5e"))["decode"]
    assert findings([report_on(decode, chosen)], 1 << 30), "the compiler's own layout is a copy"

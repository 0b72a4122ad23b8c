"""Layers that repeat as one loop body: the tokens of layers one by one, states in place, nothing copied."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from test_native import chunk_program
from test_runner import random_weights

import systolic as sy
from systolic.backends.native.layers import LEAST_SPARED, LayerLoop, choose_loop, plan_loop
from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.xla import XlaBackend
from systolic.compiler.program import Program
from systolic.ir.errors import SystolicError
from systolic.models.load import load
from systolic.runner.compilation import compile
from systolic.runner.decode_loop import DecodeLoop
from systolic.runner.executable import Executable
from systolic.runner.sampling import Row

pytestmark = pytest.mark.optimised

MODELS = {  # a model, and how many layers a step of it has as a loop
    "llama_gqa_llama3": 3,
    "mistral_sliding": 3,  # a window: rings
    "qwen2": 3,  # biases
    "gpt2": 3,  # biases, and weights [in, out]
    "mamba": 3,  # carries and tails
    "mixtral": 3,  # experts
}


@pytest.fixture(scope="module")
def kernels():
    backend = XlaBackend("cpu")
    if backend.kernels is None:
        pytest.skip("there is no C++ compiler that can build the kernels")
    return backend.kernels


def layers_in(text: str) -> list[int]:
    """How many layers the calls of kernels choose from, for each product in a program."""
    calls = re.findall(r"@systolic_project\w*_for_layer\(([^)]*)\)", text)
    return [sum("weight" in name for name in call.split(", ")) for call in calls]


def read(executable: Executable, case: tuple[list[int], list[int]]) -> list[int]:
    prompt, said = case
    return executable.generate(prompt, max_new_tokens=len(said), ignore_eos=True)


@pytest.mark.parametrize("name", list(MODELS))
def test_models_say_the_same_as_recorded(kernels, shared, name):
    folder = shared / "oracle" / name
    model, recorded = load(folder), np.load(folder / "oracle.npz")
    executable = compile(model, capacity=64, chunk=16, roll="always")
    plan = plan_loop(executable.programs.lowered.chunk(1).program.graph, kernels)
    assert isinstance(plan, LayerLoop)
    assert len(plan.repetition.units) == MODELS[name]
    assert "_for_layer(" in executable.programs.lowered.chunk(1).text
    case = recorded["ids_1"].tolist(), recorded["greedy_1"].tolist()
    assert read(executable, case) == case[1]


@pytest.mark.usefixtures("quick_xla")
@pytest.mark.parametrize(
    ("dtype", "state_dtype", "batch"),
    [("f32", "f32", 4), ("bf16", "f32", 1), ("int8", "int8", 1), ("f32", "int8", 4)],
)
def test_stories_are_the_same_in_every_form(kernels, shared, dtype, state_dtype, batch):
    """Five layers in the step, four in the prefill, whose last one only yields the last position."""
    folder = shared / "real" / "stories260K"
    cases = json.loads((folder / "reference.json").read_text())["cases"]
    prompts = [case["prompt_ids"] for case in cases][:batch]
    said = []
    for roll in ("always", "never"):
        given = {"batch": batch, "capacity": 96, "chunk": 16, "state_dtype": state_dtype, "roll": roll}
        executable = compile(load(folder, dtype), **given)
        prompts = (prompts * batch)[:batch]
        said.append(executable.generate_batch(prompts, max_new_tokens=40, ignore_eos=True))
        texts = [executable.programs.lowered.chunk(size).text for size in (1, 16)]
        rolled = [text.count("_for_layer(") > 0 for text in texts]
        assert rolled == [roll == "always"] * 2
    assert said[0] == said[1]
    if dtype == state_dtype == "f32":
        assert said[0][0] == cases[0]["new_ids"][:40]


@pytest.mark.usefixtures("quick_xla")
def test_layers_that_alternate(kernels, tmp_path):
    """A window and the whole past by turns: two layers are a unit."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = {
        "model_type": "gemma2",
        **heads,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 8,
        "vocab_size": 128,
        "max_position_embeddings": 128,
        "sliding_window": 12,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    graph = load(tmp_path / "config.json").graph
    weights, said = {name: 0.1 * value for name, value in random_weights(graph).items()}, []
    for roll in ("always", "never"):
        executable = compile(graph, weights, capacity=64, chunk=16, roll=roll)
        said.append(executable.generate([3, 1, 4, 1, 5], max_new_tokens=40, temperature=2.0, seed=1))
    plan = plan_loop(executable.programs.lowered.chunk(1).program.graph, kernels)
    assert (len(plan.repetition.units), len({s.tensor for s in plan.repetition.kept.values()})) == (4, 2)
    assert len(set(said[0])) > 5
    assert said[0] == said[1]


@pytest.mark.usefixtures("quick_xla")
def test_what_was_chosen_is_reported(kernels, cli, shared, tmp_path):
    stories = shared / "real" / "stories260K"
    arguments = ("run", stories, "--prompt", "Once", "--max-new-tokens", 2, "--capacity", 32, "--json")
    layers = {}
    for roll in ("always", "never", "auto"):
        programs = json.loads(cli(*arguments, "--roll", roll)[1])["programs"]
        layers[roll] = {program["name"]: program["layers"] for program in programs}
    assert layers["always"]["generate.greedy"] == "one loop over 5 times 25 nodes, 100 fewer to compile"
    assert layers["never"]["generate.greedy"] == "one by one: layers are to stay apart"
    assert layers["auto"]["generate.greedy"].startswith(
        "one by one: "
    )  # too few, or products are faster apart
    assert cli("compile", stories, "--out", tmp_path / "out", "--capacity", 32)[0] == 0
    programs = json.loads((tmp_path / "out" / "manifest.json").read_text())["programs"]
    why = {program["name"]: program["layers"] for program in programs}
    assert why["decode"] == "one by one: a loop would spare XLA 100 nodes of at least 128"
    report = json.loads(cli("run", tmp_path / "out", *arguments[2:6], "--json", "--roll", "always")[1])
    assert {"one loop over 5 times 25 nodes, 100 fewer to compile"} <= {
        p["layers"] for p in report["programs"]
    }


# ---- in place ----


def copied(text: str, size: int) -> list[str]:
    """What optimised HLO copies that has at least so many elements."""
    found = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|convert|transpose)\(", text)
    return [shape for shape in found if np.prod([int(n) for n in shape.split(",")]) >= size]


def test_nothing_of_a_layer_is_copied_in_the_loop(kernels, shared):
    """Not even in the decode loop, a loop around this one: weights and states stay where they are."""
    executable = compile(load(shared / "real" / "stories260K"), capacity=96, roll="always")
    loop = DecodeLoop(executable, [Row((), True)], [[]])._program
    for prepared in (executable.programs.chunk(1), loop):
        assert prepared.text.count("_for_layer(") == 7
        states = prepared.program.states
        assert prepared.memory.alias_size_in_bytes >= sum(state.bytes for state in states)
        smallest = min(state.type.size for state in states)
        assert copied(prepared.optimized_text, smallest) == []


def test_operations_do_not_grow_with_the_layers(kernels):
    counts = [emitted(layers, kernels).count(" = stablehlo.") for layers in (8, 16, 40)]
    assert len(set(counts)) == 1


# ---- the rule ----


def stacked(layers: int) -> Program:
    """Layers of a product and a nonlinearity."""

    def model(x):
        for number in range(layers):
            x = x + sy.tanh(sy.parameter(f"w.{number}", (64, 64)) @ x)
        return x

    return chunk_program(sy.trace(model, x="f32[64]"))


def emitted(layers: int, kernels) -> str:
    return emit_stablehlo(stacked(layers), kernels, roll="always")


def test_auto_rolls_what_spares_enough(kernels):
    few, many = (choose_loop(stacked(layers).graph, kernels, "auto") for layers in (8, 200))
    assert few == f"fewer than {LEAST_SPARED} nodes"
    assert isinstance(many, LayerLoop)
    assert many.spared >= LEAST_SPARED
    assert str(many) == f"one loop over 200 times 3 nodes, {many.spared} fewer to compile"
    assert choose_loop(stacked(200).graph, kernels, "never") == "layers are to stay apart"
    assert choose_loop(stacked(200).graph, None, "always") == "no kernels of ours run here"


def test_large_weights_that_no_kernel_reads_keep_layers_apart(kernels):
    def model(x):
        for number in range(6):
            x = x + sy.parameter(f"w.{number}", (64, 64)) @ x
            x = sy.sum(sy.parameter(f"large.{number}", (512, 64)) * x, 0)
        return x

    program = chunk_program(sy.trace(model, x="f32[64]"))
    assert plan_loop(program.graph, kernels) == "large.1 would be copied for each layer"


def test_taps_keep_layers_apart(kernels, shared):
    folder, said = shared / "real" / "stories260K", []
    for roll in ("always", "never"):
        taps = compile(load(folder), capacity=32, chunk=16, roll=roll).tap("layers.*.mlp.x")
        assert "_for_layer(" not in taps.executable.programs.verify(1).text
        said.append([reading.values for reading in taps.trace([1, 403, 407], max_new_tokens=2)])
    assert len(said[0]) == len(said[1]) == 4
    for got, want in zip(*said, strict=True):
        assert len(got) == 5
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value)


def test_a_form_that_there_is_not():
    graph = sy.trace(lambda x: x * 2.0, x="f32[4]")
    with pytest.raises(SystolicError, match="roll must be one of auto, always, never, not 'often'"):
        compile(graph, roll="often")
    with pytest.raises(
        SystolicError, match="the numpy backend writes every layer; roll must be auto or never"
    ):
        compile(graph, backend="numpy", roll="always")

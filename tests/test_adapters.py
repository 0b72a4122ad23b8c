"""Adapters as peft writes them, merged and kept side by side, and learned prompts, as peft computes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from seeded_weights import seeded_adapter, seeded_tensor

import systolic as sy
from systolic.models.peft import read_adapter

RECORDED = Path(__file__).parent / "recorded_adapters"
CASES = {folder.name: sorted(f.name for f in folder.iterdir() if f.is_dir()) for folder in RECORDED.iterdir()}
PROMPTS = {"prompt"}
ONLY_MERGED = {("llama", "dora"), ("gpt2", "head")}
CAPACITY = {"capacity": 32, "chunk": 8}
SETTINGS = {"max_new_tokens": 8, "ignore_eos": True}


class Case:
    """A recorded model with its adapters, as directories."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.outputs = np.load(RECORDED / name / "outputs.npz")
        shapes, seed = json.loads((RECORDED / name / "tensors.json").read_text()), int(self.outputs["seed"])
        shutil.copy(RECORDED / name / "config.json", folder)
        model = {n: seeded_tensor(n, tuple(s), seed) for n, s in shapes["model"].items()}
        save_file(model, folder / "model.safetensors")
        for adapter in CASES[name]:
            (folder / adapter).mkdir()
            shutil.copy(RECORDED / name / adapter / "adapter_config.json", folder / adapter)
            tensors = seeded_adapter(adapter, shapes[adapter], seed)
            save_file(tensors, folder / adapter / "adapter_model.safetensors")

    @property
    def ids(self) -> list[int]:
        return self.outputs["ids"].tolist()

    def kept(self) -> dict[str, Path]:
        """The adapters that can stand side by side, by name."""
        names = (name for name in CASES[self.name] if (self.name, name) not in ONLY_MERGED)
        return {name: self.folder / name for name in names}

    def greedy(self, adapter: str | None) -> list[int]:
        return self.outputs[f"{adapter or 'model'}.greedy"].tolist()

    def require_like_recorded(self, scores: np.ndarray, adapter: str | None) -> None:
        want = self.outputs[f"{adapter or 'model'}.logits"]
        np.testing.assert_allclose(scores[-len(want) :], want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Case("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def adapter(llama, tmp_path):
    """A copy of an adapter that a test may change, and what changes its config."""
    copy = shutil.copytree(llama.folder / "attention", tmp_path / "adapter")

    def change(**fields):
        file = copy / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
        return copy

    return change


# ---- merged ----


def test_merged_adapters_compute_what_peft_does(case):
    for name in set(CASES[case.name]) - PROMPTS:
        model = sy.load(case.folder, adapter=case.folder / name)
        executable = sy.compile(model, backend="numpy", **CAPACITY)
        case.require_like_recorded(executable.score(case.ids), name)
        assert executable.generate(case.ids, **SETTINGS) == case.greedy(name)


def test_nothing_is_merged_before_it_is_read_and_nothing_else_is_copied(llama):
    merged, plain = sy.load(llama.folder, adapter=llama.folder / "attention"), sy.load(llama.folder)
    name = "model.layers.0.self_attn.k_proj.weight"
    assert np.shares_memory(merged.weights[name], merged.weights[name])  # the file's own bytes
    name = "model.layers.0.self_attn.q_proj.weight"
    factors = load_file(llama.folder / "attention" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight"] for side in "AB")
    np.testing.assert_allclose(merged.weights[name], plain.weights[name] + 6 / 4 * b @ a, atol=1e-6)
    assert not np.shares_memory(merged.weights[name], merged.weights[name])


def test_several_adapters_are_merged_one_after_the_other(llama):
    both = sy.load(llama.folder, adapter=[llama.folder / "attention", llama.folder / "linear"])
    one, other, plain = (
        sy.load(llama.folder, adapter=names)
        for names in (llama.folder / "attention", llama.folder / "linear", ())
    )
    for name in plain.weights:
        want = one.weights[name] + other.weights[name] - plain.weights[name]
        np.testing.assert_allclose(both.weights[name], want, atol=1e-5)


def test_merged_weights_are_kept_as_they_are_asked_for(llama):
    narrow = sy.load(llama.folder, dtype="bf16", adapter=llama.folder / "attention")
    full = sy.load(llama.folder, adapter=llama.folder / "attention")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert narrow.weights[name].dtype.name == "bfloat16"
    np.testing.assert_array_equal(narrow.weights[name], full.weights[name].astype(narrow.weights[name].dtype))


# ---- kept ----


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_rows_of_one_batch_speak_with_adapters_of_their_own(case, backend):
    kept = case.kept()
    executable = sy.compile(sy.load(case.folder), backend=backend, batch=3, adapters=kept, **CAPACITY)
    chosen = [None, *kept, None, *reversed(kept)]
    replies = executable.generate_batch(
        [case.ids] * len(chosen), adapter=chosen, max_new_tokens=8, ignore_eos=True
    )
    assert replies == [case.greedy(name) for name in chosen]
    if backend == "numpy":
        for name in (None, *kept):
            case.require_like_recorded(executable.score(case.ids, adapter=name), name)


def test_switching_makes_no_program(llama):
    executable = sy.compile(sy.load(llama.folder), backend="numpy", adapters=llama.kept(), **CAPACITY)
    assert executable.generate(llama.ids, **SETTINGS) == llama.greedy(None)
    made = len(executable.programs)
    for name in ("attention", "linear", "head"):
        assert executable.generate(llama.ids, adapter=name, **SETTINGS) == llama.greedy(name)
    assert len(executable.programs) == made


@pytest.mark.parametrize("dtype", ["bf16"])
def test_a_model_in_another_type_keeps_adapters(llama, dtype):
    directory = llama.folder / "head"
    kept = sy.compile(
        sy.load(llama.folder, dtype=dtype), backend="numpy", adapters={"head": directory}, **CAPACITY
    )
    plain = sy.compile(sy.load(llama.folder, dtype=dtype), backend="numpy", **CAPACITY)
    np.testing.assert_allclose(kept.score(llama.ids), plain.score(llama.ids), atol=1e-5)
    full = llama.outputs["head.logits"]
    got = kept.score(llama.ids, adapter="head")[-len(full) :]
    np.testing.assert_allclose(got, full, atol=0.05 * np.abs(full).max())


def test_an_adapter_of_another_size_takes_no_part_of_the_others(llama):
    """Stacks are filled up with zeros: factors of rank 2, 3 and 4 for the same module."""
    graph = sy.compile(sy.load(llama.folder), backend="numpy", adapters=llama.kept(), **CAPACITY).model.graph
    stack = graph.by_name["model.layers.0.mlp.down_proj.adapters.left"]
    assert stack.tensor.static_shape == (4, 24, 3)


# ---- what else a row does ----


@pytest.fixture(scope="module")
def kept(llama):
    return sy.compile(sy.load(llama.folder), backend="numpy", batch=2, adapters=llama.kept(), **CAPACITY)


NAMES = (None, "attention", "head", "prompt")


def test_the_scheduler_serves_requests_with_adapters(llama, kept):
    """Texts that begin alike share nothing across adapters, and all of it with the same one."""
    with kept.scheduler() as scheduler:
        for again in (False, True):
            requests = [scheduler.submit(llama.ids, adapter=name, **SETTINGS) for name in NAMES]
            assert [r.result() for r in requests] == [llama.greedy(name) for name in NAMES]
            assert all((r.reused > 0) == again for r in requests)


def test_beams_sessions_and_guesses_speak_with_an_adapter(llama, kept):
    for name in NAMES:
        (best,) = kept.beam_search(llama.ids, beams=1, adapter=name, **SETTINGS)
        assert list(best.tokens) == llama.greedy(name)
        session = kept.session(llama.ids, adapter=name, **SETTINGS)
        assert [step.token for step in session.steps()] == llama.greedy(name)
        assert [step.token for step in kept.speculate(llama.ids, adapter=name, **SETTINGS)] == llama.greedy(
            name
        )


def test_a_session_changes_its_adapter(llama, kept):
    session = kept.session(llama.ids, **SETTINGS)
    assert next(session.steps(1)).token == llama.greedy(None)[0]
    session.edit(len(llama.ids), remove=1)
    session.change(adapter="attention")
    assert [step.token for step in session.steps()] == llama.greedy("attention")
    with pytest.raises(sy.SystolicError, match="what stands before its text differs"):
        session.change(adapter="prompt")


def test_a_state_belongs_to_its_adapter(llama, kept, tmp_path):
    rows = kept.batch()
    number = kept.model.adapters["attention"].number
    rows.begin(0, adapter=number)
    rows.read({0: llama.ids[:-1]})
    kept.save_state(rows.take(0), tmp_path / "state")
    rows.put(1, kept.load_state(tmp_path / "state"))
    logits = rows.read({1: llama.ids[-1:]})[1]
    np.testing.assert_allclose(logits, llama.outputs["attention.logits"][-1], atol=1e-4)


# ---- learned prompts ----


def test_a_learned_prompt_is_token_ids_behind_the_vocabulary(llama, kept):
    learned = kept.model.adapters["prompt"].prompt
    assert learned == tuple(range(80, 85))
    reply = kept.generate([*learned, *llama.ids], **SETTINGS)
    assert reply == llama.greedy("prompt") == kept.generate(llama.ids, adapter="prompt", **SETTINGS)
    penalised = kept.generate(llama.ids, adapter="prompt", repetition_penalty=1.3, **SETTINGS)
    assert len(penalised) == 8  # no penalty trips over ids that no token has


def test_a_learned_prompt_takes_room(llama, kept):
    ids = llama.ids * 2 + llama.ids[:3]
    assert len(kept.generate(ids, max_new_tokens=1, ignore_eos=True)) == 1
    with pytest.raises(sy.SystolicError, match="more than the capacity of 32"):
        kept.generate(ids, adapter="prompt", max_new_tokens=1)


def test_a_learned_prompt_is_not_merged(llama):
    with pytest.raises(sy.SystolicError, match=r"learned prompt, which cannot be merged.*adapters="):
        sy.load(llama.folder, adapter=llama.folder / "prompt")


# ---- experts and encoders, which peft records in other ways ----


def write_adapter(folder, factors, **fields):
    """An adapter of rank 2 for modules of [out, in], in the older form."""
    folder.mkdir()
    tensors = {}
    for module, (out, inner) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.default.weight"] = seeded_tensor(
            f"{module}.A", (2, inner), 1
        )
        tensors[f"base_model.model.{module}.lora_B.default.weight"] = seeded_tensor(
            f"{module}.B", (out, 2), 1
        )
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": None, **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_factors_for_some_experts(tmp_path, backend):
    case = Case("mixtral", tmp_path)
    experts = "model.layers.{}.block_sparse_moe.experts.{}.{}"
    factors = {experts.format(0, e, "w1"): (40, 24) for e in (0, 2)}
    factors |= {experts.format(i, e, "w2"): (24, 40) for i in (0, 1) for e in range(4)}
    directory = write_adapter(tmp_path / "experts", factors)
    kept = sy.compile(
        sy.load(tmp_path), backend=backend, adapters={"experts": directory, **case.kept()}, **CAPACITY
    )
    merged = sy.compile(sy.load(tmp_path, adapter=directory), backend=backend, **CAPACITY)
    want = merged.score(case.ids)
    np.testing.assert_allclose(kept.score(case.ids, adapter="experts"), want, atol=1e-4)
    assert np.abs(kept.score(case.ids) - want).max() > 0.1
    assert kept.generate(case.ids, adapter="layer", **SETTINGS) == case.greedy("layer")
    taken = [node for node in kept.programs.chunk(8).program.graph if node.op.name == "routed_contraction"]
    assert any("adapters" in source.name for node in taken for source in node.sources)  # of the chosen alone


def test_an_encoder_decoder_speaks_with_adapters(tmp_path):
    recorded = RECORDED.parent / "recorded" / "bart"
    shapes = json.loads((recorded / "tensors.json").read_text())
    shutil.copy(recorded / "config.json", tmp_path)
    save_file({n: seeded_tensor(n, tuple(s), 0) for n, s in shapes.items()}, tmp_path / "model.safetensors")
    modules = [n.removesuffix(".weight") for n in shapes if n.endswith((".q_proj.weight", ".fc1.weight"))]
    factors = {m: tuple(shapes[f"{m}.weight"]) for m in modules}
    directory = write_adapter(tmp_path / "adapter", factors)
    kept = sy.compile(sy.load(tmp_path), backend="numpy", batch=2, capacity=16, adapters={"a": directory})
    merged = sy.compile(sy.load(tmp_path, adapter=directory), backend="numpy", capacity=16)
    plain = sy.compile(sy.load(tmp_path), backend="numpy", capacity=16)
    source, settings = [5, 6, 7, 8, 9], {"max_new_tokens": 6, "ignore_eos": True}
    replies = kept.generate_batch([source, source], adapter=["a", None], **settings)
    assert replies == [one.generate(source, **settings) for one in (merged, plain)]
    np.testing.assert_allclose(kept.encode(source, adapter="a"), merged.encode(source), atol=1e-5)
    assert np.abs(merged.encode(source) - plain.encode(source)).max() > 0.1


# ---- what is refused ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING is not supported"),
        ({"peft_type": "P_TUNING"}, "P_TUNING is not supported"),
        ({"r": 5}, r"\[5, in\] and \[out, 5\] are expected"),
        ({"bias": "some"}, "bias must be none, all or lora_only"),
        ({"target_modules": ["k_proj"]}, "which target_modules in .* leaves out"),
        ({"exclude_modules": ["q_proj"]}, "which target_modules in .* leaves out"),
        ({"layers_to_transform": [1]}, "which target_modules in .* leaves out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"use_dora": True}, "use_dora .* contradict"),
        ({"lora_bias": True}, "lora_bias is True, a field that is not understood"),
        ({"target_parameters": ["w"]}, "target_parameters is .* not understood"),
        ({"something_new": 3}, "something_new is 3, a field that is not understood"),
    ],
)
def test_a_field_that_is_not_understood_is_named(adapter, fields, message):
    with pytest.raises(sy.SystolicError, match=message):
        read_adapter(adapter(**fields))


def test_a_field_that_is_off_is_no_matter(adapter):
    assert read_adapter(adapter(something_new=None, other={}, use_qalora=False)).factors


def test_what_does_not_fit_the_model_is_named(llama, tmp_path):
    wrong = write_adapter(tmp_path / "wrong", {"model.layers.0.self_attn.q_proj": (24, 23)})
    for use in (
        lambda directory: sy.load(llama.folder, adapter=directory),
        lambda directory: sy.compile(sy.load(llama.folder), adapters={"a": directory}),
    ):
        with pytest.raises(sy.SystolicError, match=r"q_proj make \[24, 23\], not \[24, 24\]"):
            use(wrong)
    nothing = write_adapter(tmp_path / "nothing", {"model.layers.9.self_attn.q_proj": (24, 24)})
    with pytest.raises(sy.SystolicError, match=r"layers\.9.*which the model does not have"):
        sy.load(llama.folder, adapter=nothing)
    with pytest.raises(sy.SystolicError, match="is no adapter"):
        sy.load(llama.folder, adapter=tmp_path)


def test_what_can_only_be_merged_says_so(case):
    for name in [name for one, name in ONLY_MERGED if one == case.name]:
        with pytest.raises(sy.SystolicError, match="merge it when that is loaded"):
            sy.compile(sy.load(case.folder), adapters={"a": case.folder / name})


def test_integers_take_merged_adapters_and_keep_none(llama):
    directory = llama.folder / "attention"
    merged = sy.compile(sy.load(llama.folder, dtype="int8", adapter=directory), backend="numpy", **CAPACITY)
    llama.require_like_recorded(merged.score(llama.ids), "attention")  # matrices this small stay as they are
    with pytest.raises(sy.SystolicError, match="is kept as int8, beside which no adapter can be kept"):
        sy.compile(sy.load(llama.folder, dtype="int8"), adapters={"a": directory})


def test_an_adapter_that_is_not_there_is_named(llama, kept):
    with pytest.raises(sy.SystolicError, match="no adapter 'other'; it has attention, head, linear, prompt"):
        kept.generate(llama.ids, adapter="other")
    with pytest.raises(sy.SystolicError, match=r"it has none: give compile\(…, adapters="):
        sy.compile(sy.load(llama.folder), backend="numpy", **CAPACITY).generate(llama.ids, adapter="other")
    with pytest.raises(sy.SystolicError, match="2 adapters are named for 1 prompts"):
        kept.generate_batch([llama.ids], adapter=["head", "head"])


# ---- at the command line, and served ----

MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj")


@pytest.fixture(scope="module")
def bard(tmp_path_factory):
    """The embedded model with factors that change what it says, and a learned prompt."""
    folder, model = tmp_path_factory.mktemp("bard"), sy.load()
    shapes = {node.name: node.tensor.static_shape for node in model.graph.parameters}
    factors = {
        f"model.layers.{i}.{m}": shapes[f"model.layers.{i}.{m}.weight"] for i in (0, 1) for m in MODULES
    }
    write_adapter(folder / "factors", factors)
    (folder / "prompt").mkdir()
    vectors = 3 * model.weights["model.embed_tokens.weight"][40:44]
    save_file({"prompt_embeddings": vectors}, folder / "prompt" / "adapter_model.safetensors")
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}
    (folder / "prompt" / "adapter_config.json").write_text(json.dumps(config))
    names = {name: folder / name for name in ("factors", "prompt")}
    executable = sy.compile(model, backend="numpy", batch=2, capacity=64, chunk=16, adapters=names)
    ids = executable.prompt_ids("ROMEO:")
    said = {
        name: executable.generate(ids, adapter=name, max_new_tokens=6, temperature=0)
        for name in (None, "factors", "prompt")
    }
    assert len(set(map(tuple, said.values()))) == 3
    return folder, executable, said


def test_run_with_an_adapter(cli, bard):
    folder, _, said = bard
    options = (
        "--prompt",
        "ROMEO:",
        "--max-new-tokens",
        6,
        "--temperature",
        0,
        "--backend",
        "numpy",
        "--json",
    )
    for name in ("factors", "prompt"):
        status, out, _ = cli("run", "--backend", "numpy", "--adapter", folder / name, *options)
        assert status == 0
        assert json.loads(out)["new_ids"] == said[name]
    status, _, error = cli("run", "--adapter", folder / "nothing", *options)
    assert status == 2
    assert "is no adapter" in error


def test_score_with_an_adapter(cli, bard, tmp_path):
    folder, executable, _ = bard
    text = tmp_path / "text.txt"
    text.write_text("ROMEO:\nWhat light is that?")
    for name in ("factors", "prompt"):
        status, out, _ = cli(
            "score", "shakespeare", text, "--adapter", folder / name, "--json", "--capacity", 64
        )
        assert status == 0
        want = executable.log_likelihoods(executable.prompt_ids(text.read_text()), adapter=name).sum()
        assert json.loads(out)["log_likelihood"] == pytest.approx(want, rel=1e-4)


def test_a_learned_prompt_stands_before_every_turn_of_a_session(bard):
    _, executable, said = bard
    session = executable.session("ROMEO:", adapter="prompt", max_new_tokens=6, temperature=0)
    for _ in range(2):
        assert [step.token for step in session.steps()] == said["prompt"]
        session.begin("ROMEO:")


def test_clients_call_an_adapter_like_a_model(bard):
    httpx, server = pytest.importorskip("httpx2"), pytest.importorskip("test_server")
    _, executable, said = bard
    with server.served(server.Service(executable, name="bard")) as address:
        models = httpx.get(f"{address}/v1/models").json()["data"]
        assert [(m["id"], m.get("parent")) for m in models] == [
            ("bard", None), ("factors", "bard"), ("prompt", "bard")
        ]  # fmt: skip
        for name in (None, "factors", "prompt"):
            asked = {"model": name or "bard", "prompt": "ROMEO:", "max_tokens": 6, "temperature": 0}
            answer = httpx.post(f"{address}/v1/completions", json=asked, timeout=60).json()
            assert answer["model"] == asked["model"]
            ids = executable.prompt_ids("ROMEO:")
            assert answer["choices"][0]["text"] == executable.text_behind(ids, said[name])
        wrong = httpx.post(f"{address}/v1/completions", json={"model": "other", "prompt": "a"})
        assert "'bard', 'factors', 'prompt' are" in wrong.json()["error"]["message"]

"""Models of two clocks: the source is read once, and the target is decoded behind what it left."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk, derive_source
from systolic.ir.evaluate import evaluate
from systolic.ir.interpret import interpret
from systolic.models.load import load
from systolic.models.model import Constraints
from systolic.runner.compilation import compile
from systolic.runner.locate import open_executable

BACKENDS = ["numpy", "xla"]


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "oracle" / "t5"


@pytest.fixture(scope="module")
def recorded(folder):
    return np.load(folder / "oracle.npz")


@pytest.fixture(scope="module", params=BACKENDS)
def t5(request, folder):
    return compile(load(folder), backend=request.param, capacity=64)


def relative_error(got, want):
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


# ---- the recorded model ----


def test_t5_yields_what_is_recorded(t5, recorded):
    for i in range(3):
        ids, target = recorded[f"ids_{i}"].tolist(), recorded[f"dec_ids_{i}"].tolist()
        assert relative_error(t5.score(ids, target=target), recorded[f"logits_{i}"]) < 2e-5
        assert relative_error(t5.encode(ids), recorded[f"enc_{i}"]) < 2e-5
        each = t5.log_likelihoods(ids, target=target)
        assert np.abs(each - recorded[f"token_ll_{i}"]).max() < 1e-4
        greedy = t5.generate(ids, max_new_tokens=24, ignore_eos=True)
        assert greedy == recorded[f"greedy_{i}"].tolist()


def test_t5_begins_with_its_start_token_and_heeds_its_end(t5, recorded, folder):
    ids, (start, *expected) = recorded["ids_1"].tolist(), recorded["greedy_cfg_1"].tolist()
    assert start == t5.model.start_id == 0
    assert t5.model.eos_ids == (1,)
    assert t5.generate(ids, max_new_tokens=24) == expected
    ends = dataclasses.replace(load(folder), eos_ids=(expected[4],))
    *_, last = compile(ends, backend="numpy", capacity=64).steps(ids)
    assert (last.token, last.finish_reason) == (expected[4], "eos")


@pytest.mark.parametrize("batch", [3, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_sources_give_what_rows_give_alone(folder, recorded, backend, batch):
    executable = compile(load(folder), backend=backend, capacity=64, batch=batch)
    sources = [
        row[mask > 0].tolist()
        for row, mask in zip(recorded["batch_ids"], recorded["batch_mask"], strict=True)
    ]
    assert [len(source) for source in sources] == [4, 13, 37]
    expected = [recorded[f"greedy_{i}"].tolist() for i in range(3)]
    assert executable.generate_batch(sources, max_new_tokens=24, ignore_eos=True) == expected
    for source, target, logits in zip(
        sources, recorded["batch_dec_ids"], recorded["batch_logits"], strict=True
    ):
        assert relative_error(executable.score(source, target=target), logits) < 2e-5


def test_the_states_of_t5(t5):
    states = {state.name: state for state in t5.states}
    constants = {f"decoder.layers.{i}.cross.{part}" for i in range(2) for part in "kv"}
    kept = {f"decoder.layers.{i}.attn.{part}" for i in range(2) for part in "kv"}
    assert {name for name, state in states.items() if state.kind == "constant"} == constants
    assert {name for name, state in states.items() if state.kind == "append"} == kept
    assert set(states) == constants | kept
    assert {str(state.type) for state in states.values()} == {"f32[1,4,64,10]"}
    assert sum(state.bytes_per_token for state in states.values()) == 2 * 2 * 4 * 10 * 4


@pytest.mark.parametrize("state", ["sources", "tokens"])
def test_however_states_are_chosen_the_target_is_the_same(folder, recorded, state):
    executable = compile(load(folder), backend="numpy", capacity=32, state=state)
    expected = recorded["greedy_1"].tolist()[:8]
    assert executable.generate(recorded["ids_1"], max_new_tokens=8, ignore_eos=True) == expected


def test_the_source_is_read_once(folder, recorded, monkeypatch):
    executable, calls = compile(load(folder), backend="numpy", capacity=64), []
    prepared = executable.programs.source(13)
    monkeypatch.setattr(
        type(executable.programs), "source", lambda self, length: calls.append(length) or prepared
    )
    executable.generate(recorded["ids_1"], max_new_tokens=5, ignore_eos=True)
    assert calls == [13]
    decode = executable.programs.chunk(1, 13).program.graph
    assert not any(name.startswith("encoder.") for name in decode.by_name)  # nor any weight of it


# ---- what cannot be asked ----


def test_what_does_not_fit_a_model_of_two_clocks(t5, folder, shared):
    for call, message in (
        (lambda: t5.score([1, 2]), r"t5 scores a target behind its source: give target="),
        (lambda: t5.log_likelihoods([1, 2]), r"give target="),
        (lambda: t5.score([1], target=[]), "the target is empty"),
        (lambda: t5.score([1], target=[0, 128]), "token id 128 is outside the vocabulary"),
        (lambda: t5.generate(list(range(65))), "the prompt has 65 tokens, more than the capacity of 64"),
        (lambda: t5.encode([1], output="logits"), "has no output 'logits'; it has encoder.encoded"),
        (lambda: t5.encode([1], types=[0]), "takes no types beside the token ids; it takes nothing"),
    ):
        with pytest.raises(sy.SystolicError, match=message):
            call()
    startless = compile(dataclasses.replace(load(folder), start_id=None), backend="numpy", capacity=64)
    with pytest.raises(sy.SystolicError, match="t5 has no decoder_start_token_id"):
        startless.generate([1, 2])
    llama = compile(load(shared / "oracle" / "qwen3"), backend="numpy", capacity=32)
    with pytest.raises(sy.SystolicError, match="qwen3 reads one text; only an encoder-decoder has a target"):
        llama.score([1, 2], target=[3])


def test_two_sources_are_one_too_many():
    def model(left, right, target):
        table = sy.parameter("table", (5, 3))
        sums = [sy.sum(sy.whole(sy.take(table, side)), 0) for side in (left, right)]
        return {"logits": sy.take(table, target) + sums[0] + sums[1]}

    graph = sy.trace(model, left="i32[]@left", right="i32[]@right", target="i32[]@target")
    executable = compile(graph, {"table": np.ones((5, 3), np.float32)}, backend="numpy")
    with pytest.raises(sy.SystolicError, match="model reads left and right; only one source can be run"):
        executable.generate([1])


# ---- the command line ----


def test_t5_runs_from_the_command_line(cli, folder, recorded):
    ids = ",".join(map(str, recorded["ids_1"]))
    status, out, _ = cli(
        "run", folder, "--prompt-ids", ids, "--max-new-tokens", 24, "--backend", "numpy", "--json"
    )
    assert status == 0
    assert json.loads(out)["new_ids"] == recorded["greedy_1"].tolist()
    assert json.loads(out)["prompt_ids"] == recorded["ids_1"].tolist()


@pytest.fixture
def in_words(folder, tmp_path):
    """A copy of the checkpoint whose tokens are words."""
    copy = shutil.copytree(folder, tmp_path / "t5")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(copy / "tokenizer.json"))
    return copy


def text_of(ids):
    return " ".join(f"w{i}" for i in ids)


def test_a_source_in_words(cli, in_words, recorded):
    source = text_of(recorded["ids_0"])
    status, out, _ = cli("run", in_words, "--prompt", source, "--max-new-tokens", 4, "--backend", "numpy")
    assert (status, out.split()) == (0, [f"w{i}" for i in recorded["greedy_0"][:4]])


def test_a_target_is_scored_behind_its_source(cli, in_words, recorded, tmp_path):
    (tmp_path / "source.txt").write_text(text_of(recorded["ids_1"]))
    (tmp_path / "target.txt").write_text(text_of(recorded["dec_ids_1"][1:]))  # without the start token
    flags = ("--backend", "numpy", "--capacity", 64)
    score = ("score", in_words, tmp_path / "target.txt", *flags)
    status, out, _ = cli(*score, "--source", tmp_path / "source.txt", "--json")
    report = json.loads(out)
    assert status == 0
    assert report["log_likelihood"] == pytest.approx(float(recorded["ll_1"]), abs=1e-3)
    assert report["tokens"] == len(recorded["dec_ids_1"]) - 1
    status, _, error = cli(*score)
    assert (status, "give --source" in error) == (2, True)
    status, _, error = cli(
        "score", "shakespeare", tmp_path / "target.txt", *flags, "--source", tmp_path / "source.txt"
    )
    assert (status, "only an encoder-decoder has a --source" in error) == (2, True)


# ---- what is given in place of a source, or in front of the target ----


def test_states_of_the_encoder_stand_in_for_the_source(t5, recorded):
    for i in (0, 2):
        states, expected = recorded[f"enc_{i}"], recorded[f"greedy_{i}"].tolist()
        assert t5.generate(encoder_states=states, max_new_tokens=24, ignore_eos=True) == expected
        target = recorded[f"dec_ids_{i}"].tolist()
        logits = t5.score(sy.EncoderStates(states), target=target)
        assert relative_error(logits, recorded[f"logits_{i}"]) < 2e-5
    with pytest.raises(sy.SystolicError, match=r"encoder_states must be numbers \[S, 48\].*not \[4, 47\]"):
        t5.generate(encoder_states=np.zeros((4, 47)))


def test_only_the_decoder_runs_behind_given_states(t5):
    program = t5.programs.behind_encoder.source(4).program
    assert not any(node.name.startswith("encoder.block") for node in program.graph.parameters)


def test_a_target_goes_on_behind_its_prefix(t5, recorded):
    ids, (*first, a, b, c) = recorded["ids_1"].tolist(), recorded["greedy_1"].tolist()[:8]
    assert t5.generate(ids, prefix=first, max_new_tokens=3, ignore_eos=True) == [a, b, c]
    with pytest.raises(sy.SystolicError, match="token id 128 is outside the vocabulary"):
        t5.generate(ids, prefix=[128])


def test_a_model_of_one_clock_has_no_prefix(shared):
    qwen = compile(load(shared / "oracle" / "qwen3"), backend="numpy", capacity=32)
    with pytest.raises(sy.SystolicError, match="qwen3 reads one text; only an encoder-decoder has a prefix"):
        qwen.generate([1, 2], prefix=[3])
    with pytest.raises(sy.SystolicError, match="qwen3 has no encoder whose states could be given"):
        qwen.generate(encoder_states=np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("constraints", "prefix", "expected"),
    [
        ({"first": (7,)}, [], {0: 7}),
        ({"first": (7,)}, [5], {}),  # behind the start token alone
        ({"last": (9, 8)}, [], {5: 8}),
        ({"first": (7,), "last": (9,)}, [], {0: 7, 5: 9}),
    ],
)
def test_what_is_forced_comes_in_its_place(folder, recorded, constraints, prefix, expected):
    ids = recorded["ids_1"].tolist()
    forced = dataclasses.replace(load(folder), constraints=Constraints(**constraints))
    executable = compile(forced, backend="numpy", capacity=64)
    reply = executable.generate(ids, prefix=prefix, max_new_tokens=6)
    plain = executable.generate(ids, prefix=prefix, max_new_tokens=6, ignore_eos=True)
    assert {i: reply[i] for i in expected} == expected
    assert not any(plain[i] == token for i, token in expected.items())
    if 0 not in expected:
        assert reply[:5] == plain[:5]


def test_what_is_banned_never_comes(folder, recorded):
    ids, (first, second, *_) = recorded["ids_1"].tolist(), recorded["greedy_1"].tolist()
    assert first != second

    def reply(**constraints):
        model = dataclasses.replace(load(folder), constraints=Constraints(**constraints))
        return compile(model, backend="numpy", capacity=64).generate(ids, max_new_tokens=12)

    assert first not in reply(banned=(first,))
    assert reply(banned_at_start=(second,))[:2] == [first, second]
    assert reply(banned_at_start=(first,))[0] != first
    behind_forced = reply(first=(first,), banned_at_start=(second,))
    assert behind_forced[0] == first
    assert behind_forced[1] != second


def test_the_sizes_of_sources_that_a_compiled_directory_holds(cli, folder, recorded, tmp_path):
    out = tmp_path / "compiled"
    assert cli("compile", folder, "--out", out, "--capacity", 64, "--chunk", 16)[0] == 0
    executable = open_executable(str(out), "numpy")
    for length, room in ((4, 16), (16, 16), (17, 64), (64, 64)):
        for prepared in (executable.programs.source(length), executable.programs.chunk(1, length)):
            constants = [state for state in prepared.program.states if state.kind == "constant"]
            assert {state.type.static_shape for state in constants} == {(1, 4, room, 10)}
    for i in (0, 2):
        reply = executable.generate(recorded[f"ids_{i}"], max_new_tokens=8, ignore_eos=True)
        assert reply == recorded[f"greedy_{i}"].tolist()[:8]


def test_what_the_command_line_says_of_t5(cli, folder):
    status, out, _ = cli("check", folder)
    assert status == 0
    assert "logits  source  whole of clock source" in out
    assert "logits  target  prefix of clock target" in out
    _, out, _ = cli("graph", folder, "--stage", "states", "--capacity", 32)
    assert [line.split()[:3] for line in out.splitlines()[-2:-1]] == [
        ["decoder.layers.1.cross.v", "constant", "f32[1,4,32,10]"]
    ]
    _, out, _ = cli("graph", folder, "--stage", "source", "--capacity", 32, "--full")
    assert "output state.decoder.layers.1.cross.v" in out


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_directory_runs_the_same(cli, folder, recorded, tmp_path, backend):
    out = tmp_path / "compiled"
    assert cli("compile", folder, "--out", out, "--capacity", 48, "--copy-weights")[0] == 0
    executable = open_executable(str(out), backend)
    ids, target = recorded["ids_2"].tolist(), recorded["dec_ids_2"].tolist()
    greedy = executable.generate(ids, max_new_tokens=11, ignore_eos=True)
    assert greedy == recorded["greedy_2"].tolist()[:11]
    assert relative_error(executable.score(ids, target=target), recorded["logits_2"]) < 2e-5
    assert relative_error(executable.encode(ids), recorded["enc_2"]) < 2e-5


# ---- what a source leaves ----


def repeating(source, target):
    """Two key heads of the source, each repeated for three query heads, and the place of each key."""
    keys = sy.einsum("pd,khd->pkh", sy.whole(source.named("memory")), sy.parameter("w", (2, 4, 4))).named("k")
    dim = keys.shape[0]
    alone = keys.reshape(dim, 2, 1, 4).named("alone")
    repeated = sy.broadcast_to(alone, (dim, 2, 3, 4)).reshape(dim, 6, 4)
    place = sy.whole(sy.position("source")).cast("f32") * 0.1
    return sy.einsum("d,phd->h", target, repeated) + sy.sum(
        sy.softmax(sy.einsum("d,p->dp", target, place)) * place
    )


def test_repeats_and_positions_of_a_source_are_not_kept():
    graph = sy.trace(repeating, source="f32[4]@source", target="f32[4]@target")
    plan, random = choose_states(graph), np.random.default_rng(6)
    first = derive_source(graph, plan, rows=2, source_lengths={"source": 7}, capacity=4)
    assert [(s.name, s.kind, str(s.type)) for s in first.states] == [("alone", "constant", "f32[2,2,1,7,4]")]
    weights = {"w": random.normal(size=(2, 4, 4)).astype(np.float32)}
    source, target = (random.normal(size=(2, n, 4)).astype(np.float32) for n in (7, 4))
    counts, start = np.array([7, 3], np.int32), np.zeros(2, np.int32)
    given = {"source": source, "length.source": counts, "offset": start, "length": start}
    kept = evaluate(first.graph, {**weights, **given})
    chunk = derive_chunk(graph, plan, rows=2, chunk=4, capacity=4, source_lengths={"source": 7}, last=False)
    step = {"target": target, "length.source": counts, "offset": start, "length": start + 4}
    got = evaluate(chunk.graph, {**weights, **kept, **step})["output"]
    for row, count in enumerate(counts):
        want = interpret(graph, {"source": source[row, :count], "target": target[row]}, weights)["output"]
        np.testing.assert_allclose(got[row], want, rtol=2e-5, atol=2e-5)

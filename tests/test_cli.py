"""The command line: what it prints, and how every mistake ends."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.extend.backend import get_backend, get_compile_options

from systolic.runner import artifacts
from systolic.runner.commands.score import windows
from systolic.runner.files import new_directory, write_file
from systolic.runner.locate import open_executable

pytestmark = pytest.mark.optimised

LEAKING = """
import systolic as sy

def peek(token):
    x = sy.take(sy.parameter("embedding", (5, 3)), token)
    return x + sy.sum(sy.whole(x), axis=0)

def fine(token):
    return sy.take(sy.parameter("embedding", (5, 3)), token)

number = 3
"""


@pytest.fixture(scope="module")
def stories(shared) -> Path:
    return shared / "real" / "stories260K"


@pytest.fixture(scope="module")
def case(stories) -> dict:
    return json.loads((stories / "reference.json").read_text())["cases"][0]


@pytest.fixture(scope="module")
def compiled(stories, tmp_path_factory) -> Path:
    """stories260K, compiled by the command line."""
    out = tmp_path_factory.mktemp("compiled") / "stories"
    arguments = ["compile", stories, "--out", out, "--capacity", 96, "--chunk", 16, "--copy-weights"]
    subprocess.run([sys.executable, "-m", "systolic", *map(str, arguments)], check=True)
    return out


def assert_one_sentence(status: int, out: str, err: str, message: str) -> None:
    assert status == 2
    assert out == ""
    assert err.startswith("systolic: error: ")
    assert err.count("\n") == 1
    assert message in err


# ---- run ----


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_run_gives_the_recorded_text(cli, stories, case, backend):
    arguments = ("run", stories, "--prompt", case["prompt"], "--backend", backend, "--ignore-eos")
    status, out, err = cli(*arguments, "--max-new-tokens", 200)
    assert (status, err) == (0, "")
    assert case["prompt"] + out == case["text"] + "\n"
    status, out, _ = cli(*arguments, "--max-new-tokens", 30, "--json")
    report = json.loads(out)
    assert status == 0
    assert report["prompt_ids"] == case["prompt_ids"]
    assert report["new_ids"] == case["new_ids"][:30]
    assert (case["prompt"] + report["text"]) == case["text"][: len(case["prompt"]) + len(report["text"])]
    assert (report["finish_reason"], report["backend"]) == ("length", backend)
    names = {f"{part}_seconds" for part in ("load", "compile", "weights", "first_token", "decode")}
    assert set(report["timings"]) == {*names, "tokens_per_second"}
    assert all(value > 0 for value in report["timings"].values())


def test_run_with_ids_stop_and_sampling(cli, stories, case):
    ids = ",".join(map(str, case["prompt_ids"]))
    common = ("run", stories, "--backend", "numpy", "--json")
    _, out, _ = cli(*common, "--prompt-ids", ids, "--stop", "Lily", "--stop", "nothing")
    report = json.loads(out)
    assert report["text"] == ", there was a little girl named "
    assert report["finish_reason"] == "stop"
    drawn = (*common, "--prompt-ids", ids, "--temperature", 0.8, "--top-k", 50, "--top-p", 0.9, "--seed")
    texts = [json.loads(cli(*drawn, seed)[1])["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    _, out, _ = cli(*common, "--prompt-ids", ids, "--max-new-tokens", 0)
    assert json.loads(out)["new_ids"] == []
    _, out, _ = cli(*common, "--prompt-ids", ids, "--capacity", 10)
    assert json.loads(out)["finish_reason"] == "capacity"
    assert json.loads(out)["new_ids"] == case["new_ids"][:6]


def test_run_samples_as_the_checkpoint_asks_and_flags_override(cli, stories, case, tmp_path):
    folder = tmp_path / "asks"
    shutil.copytree(stories, folder)
    settings = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 1.5, "top_k": 50}

    def new_ids(do_sample: bool, *flags: object) -> list[int]:
        (folder / "generation_config.json").chmod(0o644)
        (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": do_sample}))
        arguments = ["run", folder, "--prompt", case["prompt"], "--max-new-tokens", 12, "--backend", "numpy"]
        return json.loads(cli(*arguments, "--json", *flags)[1])["new_ids"]

    greedy = case["new_ids"][:12]
    assert new_ids(False) == greedy
    assert new_ids(True) != greedy
    assert new_ids(True) == new_ids(False, "--temperature", 1.5, "--top-k", 50)
    assert new_ids(True, "--temperature", 0) == greedy


def test_run_without_a_tokenizer_prints_ids(cli, shared):
    folder = shared / "oracle" / "gpt2"
    recorded = np.load(folder / "oracle.npz")
    ids = ",".join(map(str, recorded["ids_0"]))
    arguments = ("run", folder, "--prompt-ids", ids, "--max-new-tokens", 24, "--backend", "numpy")
    status, out, _ = cli(*arguments, "--ignore-eos")
    assert status == 0
    assert [int(token) for token in out.split()] == recorded["greedy_0"].tolist()
    assert json.loads(cli(*arguments, "--json")[1])["text"] is None


def start_endless(stories: Path, *arguments: str) -> subprocess.Popen:
    """A run that takes much longer than a test: without a cache every token costs a whole pass."""
    command = ["run", stories, "--prompt", "Once", "--max-new-tokens", 500, "--ignore-eos"]
    return start([*map(str, command), "--backend", "numpy", "--state", "tokens", *arguments])


def start(arguments: list[str], before: str = "") -> subprocess.Popen:
    """A process with the command line, and with code that is run before it."""
    # A shell's background job, as this test may be, is born deaf to interrupts.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import runpy, signal; {heard}; runpy.run_module('systolic', run_name='__main__', alter_sys=True)"
    return subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{code}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_ctrl_c_keeps_what_was_said(stories):
    process = start_endless(stories)
    said = process.stdout.read(len(" upon a time"))
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (said + rest).decode().startswith(" upon a time")
    assert rest.endswith(b"\n")
    assert err == b""


def test_ctrl_c_with_json_reports_what_there_is(stories):
    """Nothing is printed before the end: beside other work it may take another try to get to a token."""
    for seconds in (6, 30, 120):
        process = start_endless(stories, "--json")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        if out:
            break
    report = json.loads(out)
    assert (process.returncode, err) == (130, b"")
    assert report["finish_reason"] == "interrupted"
    assert report["new_ids"]  # how many depends on the machine
    assert " upon a time"[: len(report["text"])] == report["text"][: len(" upon a time")]


COMPILES_FOR_MINUTES = """
import pathlib, sys, time
from systolic.backends import cache, numpy_backend
path = pathlib.Path(sys.argv.pop())
def load(self, lowered):
    def write(file):
        print("begun", flush=True)
        time.sleep(100)
    cache.write_whole(path, write)
numpy_backend.NumpyBackend.load = load
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_no_compiler_and_leaves_nothing_half_written(stories, tmp_path, times):
    arguments = ["run", str(stories), "--prompt", "Once", "--backend", "numpy", str(tmp_path / "whole")]
    process = start(arguments, COMPILES_FOR_MINUTES)
    process.stdout.readline()
    assert list(tmp_path.iterdir()) != []
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    assert set(out.split()) <= {b"begun"}  # by another thread
    assert list(tmp_path.iterdir()) == []


WRITES_WEIGHTS = """
import signal, threading, time
from systolic.backends.cache import WRITER
from systolic.runner.interrupted import end_interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
def write():
    while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        time.sleep(0.01)
    print("waited for", flush=True)
    time.sleep({seconds})
    print("written", flush=True)
threading.Thread(target=write, name=WRITER).start()
end_interrupted()
"""


def test_weights_that_are_being_written_are_waited_for_once():
    def begin(seconds: int) -> subprocess.Popen:
        code = WRITES_WEIGHTS.format(seconds=seconds)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"waited for\n"
        return process

    process = begin(1)
    assert (process.communicate(timeout=60)[0], process.returncode) == (b"written\n", 130)
    process = begin(100)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=60)[0], process.returncode) == (b"", 130)


def test_a_closed_pipe_is_quiet(stories):
    process = start_endless(stories)
    process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""


def test_help_and_numpy_do_without_jax(stories):
    code = (
        "import sys; from systolic.runner.cli import main; sys.argv = ['systolic', *{}]\n"
        "try: main()\nexcept SystemExit: pass\nprint('jax' in sys.modules)"
    )
    run = ["run", str(stories), "--prompt", "Once", "--max-new-tokens", "2", "--backend", "numpy"]
    for arguments in (["--help"], ["check", str(stories)], run):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False", arguments


# ---- check, graph, models, version ----


def test_check(cli, stories, tmp_path):
    status, out, _ = cli("check", stories)
    assert (status, out.split()[-3:]) == (0, ["logits", "token", "prefix"])
    report = json.loads(cli("check", stories, "--json")[1])
    assert report["causal"] is True
    (tmp_path / "mine.py").write_text(LEAKING)
    status, out, _ = cli("check", f"{tmp_path}/mine.py:peek")
    assert status == 1
    assert re.search(r"mine\.py:6", out)
    status, out, _ = cli("check", f"{tmp_path}/mine.py:peek", "--json")
    assert (status, json.loads(out)["causal"]) == (1, False)
    assert cli("check", f"{tmp_path}/mine.py:fine")[0] == 0


@pytest.mark.parametrize("stage", ["traced", "simplify", "prefill", "decode", "score"])
def test_graph_stages_as_text_json_and_dot(cli, stories, stage):
    arguments = ("graph", stories, "--stage", stage, "--capacity", 32)
    status, text, _ = cli(*arguments)
    assert status == 0
    assert "token: i32[" in text
    data = json.loads(cli(*arguments, "--format", "json")[1])
    assert {node["name"] for node in data["nodes"]} > {"token"}
    assert cli(*arguments, "--format", "dot")[1].startswith(("digraph", "strict digraph"))


def test_graph_states(cli, stories):
    _, out, _ = cli("graph", stories, "--stage", "states", "--capacity", 64)
    header, *rows, total = out.splitlines()
    assert header.split() == ["name", "kind", "type", "bytes/token", "bytes", "reason"]
    assert len(rows) == 10  # keys and values of 5 layers
    assert total.split() == ["total", "1,280", "81,920"]
    states = json.loads(cli("graph", stories, "--stage", "states", "--format", "json")[1])
    assert states[0]["type"] == "f32[1,4,512,8]"
    assert states[0]["bytes_per_token"] == 128


def test_graph_emits_code(cli, stories, tmp_path):
    status, out, _ = cli("graph", stories, "--stage", "stablehlo", "--capacity", 32, "--chunk", 4)
    assert status == 0
    assert "func.func public @main" in out
    assert "tensor<1x4xi32>" in out
    file = tmp_path / "decode.py"
    assert cli("graph", stories, "--stage", "numpy", "--capacity", 32, "--out", file) == (0, "", "")
    ast.parse(file.read_text())


def test_models_and_version(cli):
    status, out, _ = cli("models")
    assert status == 0
    assert "families of checkpoints (model_type in config.json), by what they keep" in out
    assert "mamba, mamba2" in out
    assert {"embedded", "families"} == set(json.loads(cli("models", "--json")[1]))
    assert re.fullmatch(r"systolic \d+\.\d+\.\d+\n", cli("--version")[1])


# ---- score ----


def test_score(cli, stories, case, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(case["text"])
    status, out, _ = cli("score", stories, file, "--json", "--backend", "numpy")
    report = json.loads(out)
    assert status == 0
    assert report["log_likelihood"] == pytest.approx(case["log_likelihood"], abs=1e-3)
    assert report["tokens"] == len(case["prompt_ids"] + case["new_ids"]) - 1
    assert report["perplexity"] == pytest.approx(np.exp(-case["log_likelihood"] / report["tokens"]), rel=1e-5)
    assert report["nats_per_character"] == pytest.approx(
        -case["log_likelihood"] / len(case["text"]), rel=1e-5
    )
    assert "nats per byte" in cli("score", stories, file, "--backend", "numpy")[1]


def test_a_long_text_is_scored_in_windows(cli, stories, tmp_path, shared):
    file = tmp_path / "long.txt"
    file.write_text((shared / "data" / "tinyshakespeare.txt").read_text()[:600])
    executable = open_executable(str(stories), "numpy", capacity=100)
    ids = executable.prompt_ids(file.read_text())
    report = json.loads(cli("score", stories, file, "--json", "--backend", "numpy", "--capacity", 100)[1])
    assert report["tokens"] == len(ids) - 1 > 200
    body, total = ids[1:], 0.0
    for start in range(0, len(body), 99):
        total += executable.log_likelihoods([1, *body[start : start + 99]]).sum()
    assert report["log_likelihood"] == pytest.approx(total)
    assert report["windows"] == -(-len(body) // 99)


@pytest.mark.parametrize("length", [2, 5, 6, 9, 10, 23])
@pytest.mark.parametrize("bos", [None, 0])
def test_windows_predict_every_token_once(length, bos):
    ids = list(range(length))
    parts = windows(ids, 5, bos)
    assert [token for part in parts for token in part[1:]] == ids[1:]
    assert all(2 <= len(part) <= 5 for part in parts)
    assert all(part[0] == (part[1] - 1 if bos is None else bos) for part in parts)


# ---- compile ----


def test_a_compiled_directory_holds_everything(compiled):
    manifest = json.loads((compiled / "manifest.json").read_text())
    options = {"batch": 1, "capacity": 96, "chunk": 16, "state": "auto", "state_dtype": "f32"}
    chunks = manifest["options"].pop("chunks")
    sizes = [size for size, _ in chunks]
    assert [sizes[0], sizes[-1]] == [1, 16]
    assert all(seconds > 0 for _, seconds in chunks)
    assert manifest["options"] == options
    assert manifest["weights"] is None
    names = [program["name"] for program in manifest["programs"]]
    loops = ["generate.greedy", "generate.temperature.top_k.top_p"]
    assert names == ["decode", *(f"prefill.{size}" for size in sizes[1:]), *loops, "score.96"]
    for name in names:
        files = sorted((compiled / "programs").glob(f"{name.replace('.', '_')}.*"))
        assert [file.suffix for file in files] == [".json", ".mlir", ".py", ".stablehlo", ".txt"]
        assert all(file.stat().st_size for file in files)
    decode = manifest["programs"][0]
    assert [value["name"] for value in decode["inputs"][:3]] == ["token", "offset", "length"]
    assert len(decode["donated"]) == 10
    for file in ("config.json", "tokenizer.json", "model.safetensors", "graph/00.traced.txt"):
        assert (compiled / file).is_file()


def test_the_numpy_module_and_the_portable_artifact_run_alone(compiled, case):
    programs = json.loads((compiled / "manifest.json").read_text())["programs"]
    score = next(program for program in programs if program["kind"] == "score")
    ids = case["prompt_ids"] + case["new_ids"]
    tokens = np.array([ids[:96]], np.int32)
    inputs = {"token": tokens, "offset": np.zeros(1, np.int32), "length": np.full(1, 96, np.int32)}
    executable = open_executable(str(compiled), "numpy")
    expected = executable.score(ids[:96])
    weights = executable.parameters

    module = runpy.run_path(str(compiled / "programs" / "score_96.py"))
    results, _ = module["run"](weights, inputs, {})
    np.testing.assert_array_equal(results["logits"][0], expected)

    client = get_backend("cpu")
    devices = client.local_devices()[:1]
    options = get_compile_options(num_replicas=1, num_partitions=1, device_assignment=np.array([devices]))
    artifact = (compiled / "programs" / "score_96.stablehlo").read_bytes()
    arguments = [weights[value["name"]] for value in score["parameters"]]
    arguments += [inputs[value["name"]] for value in score["inputs"]]
    loaded = client.compile_and_load(artifact, devices, options)
    (logits,) = loaded.execute([jax.device_put(argument) for argument in arguments])
    np.testing.assert_allclose(np.asarray(logits)[0], expected, atol=1e-4)


def test_the_decode_loop_is_a_module_that_runs_alone(compiled, case):
    executable = open_executable(str(compiled), "numpy")
    module = runpy.run_path(str(compiled / "programs" / "generate_greedy.py"))
    prefill = runpy.run_path(str(compiled / "programs" / "prefill_16.py"))
    *before, newest = case["prompt_ids"]
    block = np.array([[*before, *[0] * (16 - len(before))]], np.int32)
    read = {"token": block, "offset": np.zeros(1, np.int32), "length": np.full(1, len(before), np.int32)}
    _, states = prefill["run"](executable.parameters, read, executable.fresh_states())
    loop = {"token": np.array([[newest]], np.int32), "offset": read["length"]}
    loop |= {"limit": np.full(1, 30, np.int32), "stop": np.full((1, 4), -1, np.int32)}
    results, _ = module["run"](executable.parameters, loop, states)
    assert results["tokens"][0, :30].tolist() == case["new_ids"][:30]
    assert (results["tokens"][0, 30:] == -3).all()


def test_run_with_the_steps_of_a_chain(cli, stories, case):
    common = ("run", stories, "--prompt", case["prompt"], "--max-new-tokens", 12, "--backend", "numpy")
    report = json.loads(cli(*common, "--logprobs", 2, "--json")[1])
    assert report["new_ids"] == case["new_ids"][:12]
    for token, chances in zip(report["new_ids"], report["logprobs"], strict=True):
        first, second = chances["alternatives"]
        assert (first["id"], first["logprob"]) == (token, chances["logprob"])
        assert second["logprob"] < first["logprob"] <= 0
    options = ("--no-repeat-ngram-size", 1, "--repetition-penalty", 1.2, "--min-p", 0.1)
    report = json.loads(cli(*common, *options, "--temperature", 0.8, "--json")[1])
    said = case["prompt_ids"] + report["new_ids"]
    assert len(set(said)) == len(said)
    status, _, err = cli(*common, "--min-p", 2)
    assert (status, "min_p must be a number from 0 to 1" in err) == (2, True)


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_a_compiled_directory_runs_without_deriving(cli, compiled, case, backend, monkeypatch, tmp_path):
    def refuse(*arguments, **keywords):
        raise AssertionError("derived again")

    monkeypatch.setattr("systolic.compiler.derive.derive_chunk", refuse)
    monkeypatch.setattr("systolic.compiler.derive.derive_score", refuse)
    arguments = ("--prompt", case["prompt"], "--max-new-tokens", 40, "--backend", backend, "--json")
    report = json.loads(cli("run", compiled, *arguments)[1])
    assert report["new_ids"] == case["new_ids"][:40]
    assert report["model"] == "stories260K"
    file = tmp_path / "text.txt"
    file.write_text(case["text"][:100])
    assert cli("score", compiled, file, "--backend", backend)[0] == 0
    assert cli("check", compiled)[0] == 0


def test_mistakes_with_compiled_directories(cli, compiled, stories, tmp_path):
    arguments = ("run", compiled, "--prompt", "x", "--backend", "numpy")
    result = cli(*arguments, "--capacity", 50)
    assert_one_sentence(*result, "was compiled for capacity 96 and cannot run with 50")
    assert_one_sentence(*cli("compile", stories, "--out", compiled), "exists already")
    broken = tmp_path / "broken"
    shutil.copytree(compiled, broken)
    (broken / "programs" / "decode.json").write_text('{"name"')
    assert_one_sentence(*cli("run", broken, *arguments[2:]), "decode.json is not a readable program")
    manifest = json.loads((broken / "manifest.json").read_text())
    other = {**manifest, "dtype": "bf16"}  # its programs keep weights as f32
    (broken / "manifest.json").write_text(json.dumps(other))
    shutil.copytree(compiled / "programs", broken / "programs", dirs_exist_ok=True)
    assert_one_sentence(*cli("run", broken, *arguments[2:]), "which is bf16[512,64] now; compile it anew")
    (broken / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    assert_one_sentence(*cli("run", broken, *arguments[2:]), "has format 99")
    (broken / "manifest.json").write_text(json.dumps({**manifest, "weights": "/gone"}))
    assert_one_sentence(*cli("run", broken, *arguments[2:]), "refers to weights at /gone")
    (broken / "manifest.json").write_text(json.dumps({**manifest, "config": {}}))
    assert_one_sentence(*cli("run", broken, *arguments[2:]), "is not the one that")
    (broken / "manifest.json").write_text("[]")
    assert_one_sentence(*cli("run", broken, *arguments[2:]), "is no manifest")


def test_a_failed_compile_leaves_nothing_behind(cli, stories, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts, "_copy_checkpoint", fail)
    result = cli("compile", stories, "--out", tmp_path / "out", "--capacity", 16)
    assert_one_sentence(*result, "No space left on device")
    assert list(tmp_path.iterdir()) == []


# ---- files ----


def test_files_appear_whole_or_not_at_all(tmp_path):
    write_file(tmp_path / "a", "one")
    with pytest.raises(Exception, match="a exists already; --force overwrites it"):
        write_file(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "one"
    write_file(tmp_path / "a", "two", force=True)
    assert (tmp_path / "a").read_text() == "two"


def test_a_directory_appears_when_it_is_complete(tmp_path):
    def fill_half() -> None:
        with new_directory(tmp_path / "d") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_half()
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "d") as folder:
        (folder / "all").write_text("x")
    assert (tmp_path / "d" / "all").is_file()


# ---- bad input ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run /nowhere --prompt x", "/nowhere: is no model"),
        ("run MODEL --prompt x --prompt-ids 1", "--prompt and --prompt-ids exclude each other"),
        ("run MODEL --prompt-ids 1,x", "--prompt-ids must be integers"),
        ("run MODEL --prompt-ids 1,600", "token id 600 is outside the vocabulary"),
        ("run MODEL --prompt x --temperature -1", "temperature must be a number of at least 0"),
        ("run MODEL --prompt x --top-p 2", "top_p must be a number from 0 to 1"),
        ("run MODEL --prompt x --max-new-tokens -1", "max_new_tokens must be an integer of at least 0"),
        ("run MODEL --prompt x --backend abacus", "abacus"),
        ("run MODEL --prompt x --state guess", "state must be one of"),
        ("run MODEL --prompt x --capacity 0", "capacity must be an integer of at least 1"),
        ("run MODEL --prompt abcdefghijkl --capacity 4", "more than the capacity of 4"),
        ("run MODEL --prompt x --beams 0", "--beams must be at least 1, not 0"),
        ("run GPT2 --prompt-ids ,", "prompt is empty"),
        ("run GPT2 --prompt x", "has no tokenizer; give the prompt as token ids"),
        ("run MODEL/config.json --prompt-ids 1", "has no weights, so it cannot run"),
        ("check nothing.py:f", "nothing.py does not exist"),
        ("check MINE:missing", "has no function 'missing'"),
        ("check MINE:number", "has no function 'number'"),
        ("check BROKEN:f", "cannot be imported: SyntaxError"),
        ("graph MODEL --stage nope", "--stage must be one of traced"),
        ("graph MODEL --format png", "--format must be one of text, json, dot"),
        ("graph MODEL --stage numpy --format json", "its only --format is text"),
        ("graph MODEL --stage states --format dot", "its --format is text or json"),
        ("graph MODEL --out EXISTING", "exists already; --force overwrites it"),
        ("graph MODEL --out /nowhere/x", "/nowhere is not a directory"),
        ("compile MODEL --out EXISTING", "exists already"),
        ("compile MODEL --out /nowhere/x", "/nowhere is not a directory"),
        ("score MODEL /nowhere/x", "cannot be read: No such file"),
        ("score MODEL BINARY", "is not a text in UTF-8"),
        ("score MODEL EMPTY", "has 1 tokens, and at least 2 are needed"),
        ("score MODEL MINE --capacity 1", "too small to score"),
    ],
)
def test_bad_input_is_one_sentence(cli, stories, shared, tmp_path, arguments, message):
    files = {"MINE": LEAKING.encode(), "BROKEN": b"def f(:", "BINARY": b"\xff\xfe\xff", "EMPTY": b""}
    for name, content in files.items():
        (tmp_path / f"{name.lower()}.py").write_bytes(content)
    (tmp_path / "existing").write_text("keep me")
    names = {"GPT2": shared / "oracle" / "gpt2", "MODEL": stories, "EXISTING": tmp_path / "existing"}
    names |= {name: tmp_path / f"{name.lower()}.py" for name in files}
    for name, path in names.items():
        arguments = arguments.replace(name, str(path))
    before = sorted(tmp_path.rglob("*"))
    words = arguments.split()
    if words[0] == "run" and "--backend" not in words:
        words += ["--backend", "numpy"]
    assert_one_sentence(*cli(*words), message)
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before
    assert (tmp_path / "existing").read_text() == "keep me"


@pytest.mark.parametrize("arguments", ["run --bad", "nonsense", "run --top-k many", "compile", "score"])
def test_bad_flags_exit_with_2(cli, arguments):
    status, out, err = cli(*arguments.split())
    assert (status, out) == (2, "")
    assert "Traceback" not in err


def test_truncated_weights(cli, stories, tmp_path):
    shutil.copytree(stories, tmp_path / "model")
    os.chmod(tmp_path / "model", 0o755)
    weights = tmp_path / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-100])
    assert_one_sentence(*cli("run", tmp_path / "model", "--prompt", "x"), "model.safetensors")


def test_a_bar_shows_what_is_compiled_on_a_terminal_only(monkeypatch, capsys):
    from systolic.runner.commands.progress import progress_bar

    with progress_bar("compiling") as report:
        assert report is None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar("compiling") as report:
        assert report is not None
        report(1, 3)
    assert capsys.readouterr().out == ""

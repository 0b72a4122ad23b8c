"""Programs that an earlier process derived: found by all that they depend on, made anew when damaged."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from quick_programs import QuickDevice
from random_graphs import build, recipes

import systolic as sy
from systolic.compiler import derive as derivation
from systolic.ir.verify import verify
from systolic.runner import program_store
from systolic.runner.executable import Executable

ROOT = Path(__file__).resolve().parent.parent


def model(scale: float = 1.0) -> sy.Graph:
    def step(token):
        x = sy.take(sy.parameter("table", (16, 8)), token)
        past = sy.history(sy.parameter("w", (8, 8)) @ x)
        return {"logits": sy.parameter("table", (16, 8)) @ (sy.softmax(past @ x) @ past * scale)}

    return sy.trace(step, name="small")


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"table": random.normal(size=(16, 8)).astype("f"), "w": random.normal(size=(8, 8)).astype("f")}


def compiled(directory: Path, graph: sy.Graph | None = None, backend: str = "xla", **options) -> Executable:
    graph = model() if graph is None else graph
    return sy.compile(graph, weights(), backend=backend, cache_directory=directory, **options)


@pytest.fixture
def derivations(monkeypatch) -> list[int]:
    """The sizes of the chunk programs that are derived, as they are."""
    sizes: list[int] = []
    derive = derivation.derive_cheapest

    def counted(forms, derive_form):
        sizes.append(derive_form.keywords["chunk"])
        return derive(forms, derive_form)

    monkeypatch.setattr(derivation, "derive_cheapest", counted)
    return sizes


def test_programs_of_files_that_are_not_marked_are_compiled_quickly(tmp_path, request):
    """Otherwise the tests would take twice as long, and pass."""
    is_quick = not request.config.getoption("--optimised")
    device = compiled(tmp_path).backend.device
    assert isinstance(device, QuickDevice) == is_quick
    assert bool(device._options.env_option_overrides) == is_quick


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_nothing_is_derived_twice(tmp_path, derivations, backend):
    executable = compiled(tmp_path, backend=backend)
    first = executable.generate([1, 2, 3], max_new_tokens=6)
    assert sorted(derivations) == [1, *executable.options.cut(3)]
    derivations.clear()
    executable = compiled(tmp_path, backend=backend)
    assert executable.generate([1, 2, 3], max_new_tokens=6) == first
    assert derivations == []
    assert [state.name for state in executable.states] == [s.name for s in compiled(tmp_path).states]


@pytest.mark.parametrize("options", [{"capacity": 64}, {"batch": 2}, {"chunk": 32}, {"state": "tokens"}])
def test_other_options_are_other_programs(tmp_path, derivations, options):
    compiled(tmp_path).generate([1, 2, 3], max_new_tokens=2)
    derivations.clear()
    other = compiled(tmp_path, **options)
    assert other.generate([1, 2, 3], max_new_tokens=2) == compiled(tmp_path).generate(
        [1, 2, 3], max_new_tokens=2
    )
    assert derivations


def test_another_constant_is_another_model(tmp_path, derivations):
    compiled(tmp_path).generate([1, 2, 3], max_new_tokens=2)
    derivations.clear()
    compiled(tmp_path, model(scale=-3.0)).generate([1, 2, 3], max_new_tokens=2)
    assert derivations


def test_another_version_of_this_package_derives_anew(tmp_path, derivations, monkeypatch):
    compiled(tmp_path).generate([1, 2, 3], max_new_tokens=2)
    derivations.clear()
    monkeypatch.setattr(program_store, "package_digest", lambda: "another")
    compiled(tmp_path).generate([1, 2, 3], max_new_tokens=2)
    assert derivations


def test_a_damaged_entry_is_made_anew(tmp_path, derivations):
    want = compiled(tmp_path).generate([1, 2, 3], max_new_tokens=6)
    for entry in tmp_path.iterdir():
        whole = entry.read_bytes()
        for broken in (b"", whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), pickle.dumps("x")):
            entry.write_bytes(broken)
            assert compiled(tmp_path).generate([1, 2, 3], max_new_tokens=6) == want
    derivations.clear()
    compiled(tmp_path).generate([1, 2, 3], max_new_tokens=6)
    assert derivations == []


def test_a_leaking_model_is_refused_though_it_was_seen_before(tmp_path):
    def leak(token):
        x = sy.take(sy.parameter("table", (16, 8)), token)
        return sy.parameter("w", (8, 8)) @ x + sy.max(sy.whole(x), axis=0)

    leaking = sy.trace(leak)
    for _ in range(2):
        with pytest.raises(sy.CausalityError):
            sy.compile(leaking, weights(), cache_directory=tmp_path).generate([1, 2])


def test_two_processes_agree_on_names(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\nimport test_program_store as t\n"
        "t.compiled(Path(sys.argv[1]), backend='numpy').generate([1, 2, 3], max_new_tokens=2)"
    )
    names = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(tmp_path), str(ROOT / "tests")]
        subprocess.run(command, check=True, env=environment)
        names.append(sorted(entry.name for entry in tmp_path.iterdir()))
    assert names[0] == names[1]


@settings(max_examples=25, deadline=None)
@given(recipes)
def test_a_pickled_graph_is_the_same_graph(recipe):
    graph = build(recipe)
    again = pickle.loads(pickle.dumps(graph))
    verify(again)
    assert str(again) == str(graph)
    assert [n.name for n in again.parameters] == [n.name for n in graph.parameters]


def test_a_deep_graph_is_pickled():
    def deep(x):
        for _ in range(20_000):
            x = x + 1.0
        return x

    graph = sy.trace(deep, x="f32[]")
    assert len(pickle.loads(pickle.dumps(graph))) == len(graph)


def test_programs_are_compiled_largest_first_and_once(tmp_path):
    executable = compiled(tmp_path, chunk=64, capacity=128)
    backend, loaded = executable.backend, []
    load = backend.load

    def counted(lowered):
        loaded.append(len(lowered.text))
        return load(lowered)

    backend.load = counted
    seen: list[tuple[int, int]] = []
    executable.prepare(80, report=lambda ready, of: seen.append((ready, of)), max_new_tokens=3)
    count = len(set(executable.options.cut(80))) + 2  # to choose the first token, and a loop
    assert seen == [(ready, count) for ready in range(count + 1)]
    assert len(loaded) == len(executable.programs) == count
    assert loaded[0] == max(loaded)
    executable.prepare(80, max_new_tokens=3)
    executable.generate([1] * 80, max_new_tokens=3)
    assert len(loaded) == count


def test_an_error_of_the_compiler_surfaces(tmp_path):
    executable = compiled(tmp_path)

    def broken(lowered):
        raise RuntimeError(f"no code for {lowered.program.name}")

    executable.backend.load = broken
    with pytest.raises(RuntimeError, match="no code for"):
        executable.prepare(10)

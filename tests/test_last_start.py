"""What the last start took is loaded ahead by the next; a hint that is wrong changes nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import systolic as sy
from systolic.backends.cache import write_entry
from systolic.backends.xla import XlaBackend
from systolic.backends.xla_library import load_library_ahead
from systolic.models.embedded import embedded_models
from systolic.runner import last_start
from systolic.runner.last_start import LastStart

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_models()["shakespeare"], tmp_path / "model"))


def start(checkpoint: Path, backend: str = "xla", dtype: str = "f32") -> list[int]:
    directory = checkpoint.parent / "programs"
    executable = sy.compile(sy.load(checkpoint, dtype), backend=backend, cache_directory=directory)
    return executable.generate(PROMPT, max_new_tokens=5)


def remembered(checkpoint: Path, dtype: str = "f32") -> LastStart:
    return last_start.last_start(checkpoint, dtype)


def test_the_programs_of_the_last_start_are_loaded_before_they_are_asked_for(checkpoint):
    assert remembered(checkpoint) == LastStart()
    first = start(checkpoint)
    programs = {Path(name) for name in remembered(checkpoint).programs}
    assert remembered(checkpoint).backend == "xla"
    assert {file.parent for file in programs} == {checkpoint.parent / "programs"}
    assert all(file.exists() for file in programs)
    sy.load(checkpoint)
    ahead = XlaBackend().device._ahead
    assert programs <= set(ahead)
    assert start(checkpoint) == first
    assert not programs & set(ahead)


def test_each_dtype_and_backend_is_remembered(checkpoint):
    start(checkpoint, "numpy", "int8")
    assert remembered(checkpoint) == LastStart()
    assert remembered(checkpoint, "int8") == LastStart("numpy")
    start(checkpoint, "xla", "int8")
    assert remembered(checkpoint, "int8").backend == "xla"


@pytest.mark.parametrize("content", [b"", b"xla", b"[]", b'{"backend": "xla"}', b'{"programs": 3}'])
def test_what_another_version_remembered_is_no_hint(checkpoint, content):
    write_entry(last_start._entry(checkpoint, "f32"), content)
    assert remembered(checkpoint) == LastStart()


def test_programs_that_are_gone_or_damaged_are_made_again(checkpoint):
    first = start(checkpoint)
    gone, *damaged = map(Path, remembered(checkpoint).programs)
    gone.unlink()
    for file in damaged:
        file.write_bytes(file.read_bytes()[:-1])
    assert start(checkpoint) == first
    assert gone.exists()


def test_the_programs_of_another_model_are_not_taken_for_its_own(checkpoint):
    """A hint that names them has them loaded, and nothing more."""
    start(checkpoint)
    other = checkpoint.parent / "other"
    shutil.copytree(checkpoint, other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 0.25'))
    assert (other / "config.json").read_text() != config
    expected = start(other, "numpy")
    content = last_start._entry(checkpoint, "f32").read_bytes()
    last_start._entry(other, "f32").write_bytes(content)
    assert remembered(other) == remembered(checkpoint)
    assert start(other) == expected


def test_the_library_is_loaded_by_a_thread():
    assert load_library_ahead() is None  # it is here already
    code = (
        "from systolic.backends.xla_library import load_library_ahead\n"
        "thread = load_library_ahead()\n"
        "import numpy\n"
        "from jaxlib import xla_client\n"
        "print(thread is not None, xla_client.make_cpu_client().platform)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(sys.platform == "linux"), "cpu"]

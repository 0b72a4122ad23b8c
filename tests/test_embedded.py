"""The model that comes with the package, and the script that trained it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import systolic as sy
from systolic.runner.tokens import Tokenizer

pytestmark = pytest.mark.optimised

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "train_shakespeare.py"
BOUND = 1.40  # nats per character; the part that is tested is easier than the whole


@pytest.fixture(scope="module")
def model() -> sy.Model:
    return sy.load("shakespeare")


@pytest.fixture(scope="module")
def executable(model: sy.Model) -> sy.Executable:
    return sy.compile(model, backend="xla")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    for extra in ("optax", "tqdm"):
        pytest.importorskip(extra, reason="needs the extra `train`")
    spec = importlib.util.spec_from_file_location("train_shakespeare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_shakespeare"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(shared: Path) -> str:
    return (shared / "data" / "tinyshakespeare.txt").read_text()


def test_size(model: sy.Model) -> None:
    assert (model.path / "model.safetensors").stat().st_size < 6_000_000
    count = sum(array.size for array in model.weights.values())
    assert 1_000_000 <= count <= 3_000_000


def test_prompts_begin_with_bos(executable: sy.Executable, model: sy.Model) -> None:
    assert executable.prompt_ids("") == [model.bos_id]
    ids = executable.prompt_ids("ROMEO:\nO, naïve – night!")
    assert ids[0] == model.bos_id
    assert ids.count(model.bos_id) == 1
    assert executable.tokenizer.decode(ids) == "ROMEO:\nO, naïve – night!"


def test_bos_is_also_what_the_tokenizer_file_says(model: sy.Model) -> None:
    """Tools that know nothing of tokenizer_config.json encode a prompt the same way."""
    assert Tokenizer(model.tokenizer_path).encode("To be")[0] == model.bos_id


def test_held_out_loss_of_a_part(executable: sy.Executable, text: str) -> None:
    start = len(text) * 9 // 10
    pieces = [text[i : i + 900] for i in range(start, start + 9000, 900)]
    nats = -sum(executable.log_likelihoods(executable.prompt_ids(piece)).sum() for piece in pieces)
    assert 1.0 < nats / 9000 < BOUND


@pytest.mark.parametrize("prompt", ["ROMEO:", "", "The king is dead, and"])
def test_backends_say_the_same(executable: sy.Executable, model: sy.Model, prompt: str) -> None:
    numpy = sy.compile(model, backend="numpy")
    said = executable.generate(prompt, max_new_tokens=40)
    assert len(said) == 40
    assert numpy.generate(prompt, max_new_tokens=40) == said


def test_decoding_agrees_with_scoring(executable: sy.Executable) -> None:
    prompt = executable.prompt_ids("ROMEO:")
    said = executable.generate(prompt, max_new_tokens=60)
    logits = executable.score([*prompt, *said])
    assert logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == said


def test_it_speaks_like_shakespeare(executable: sy.Executable, text: str) -> None:
    """Most words of a drawn text are words of the plays, and others begin to speak."""
    said = "".join(executable.stream("ROMEO:", max_new_tokens=400, temperature=0.8, seed=1))
    known = set(re.findall(r"[A-Za-z']+", text))
    words = re.findall(r"[A-Za-z']+", said)
    assert len(words) > 100
    assert np.mean([word in known for word in words]) > 0.9
    assert re.search(r"\n\n[A-Z][A-Za-z ]+:\n", said)


def test_segmentations_are_of_the_text(script: ModuleType) -> None:
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 3
    tokenizer = script.train_tokenizer(text, 300)
    segmentations = script.Segmentations(tokenizer, text, 0.3, np.random.default_rng(0))
    plain, varied = segmentations.plain(), segmentations.varied()
    assert plain.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(varied.tolist()) == text
    assert len(varied) > len(plain)


@pytest.mark.parametrize("count", [1, 5, 8, 9, 12, 13, 40])
def test_windows_count_each_token_once(script: ModuleType, count: int) -> None:
    ids = list(range(1, count + 1))
    blocks, counted = script.windows(ids, begin=0, context=8)
    assert (blocks[:, 0] == 0).all()
    assert blocks[:, 1:][counted].tolist() == ids
    context = np.arange(8)[None] * counted
    assert (context[1:][counted[1:]] >= 4).all()


@pytest.mark.slow
def test_stated_loss_is_reproduced(script: ModuleType, shared: Path) -> None:
    stated = re.search(
        r"\*\*([0-9.]+) nats per character\*\*", (sy.load("shakespeare").path / "README.md").read_text()
    )
    assert stated is not None
    nats = script.evaluate("shakespeare", shared / "data" / "tinyshakespeare.txt")
    assert nats == pytest.approx(float(stated[1]), abs=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_jax")
def test_training_lowers_the_loss(script: ModuleType, tmp_path: Path) -> None:
    """A few steps of a tiny recipe: gradients through the derived program reach every weight."""
    (tmp_path / "text.txt").write_text("First Citizen:\nSpeak, speak.\n\nAll:\nResolved. Resolved.\n\n" * 60)
    recipe = script.Recipe(
        vocabulary=300, hidden=16, intermediate=32, layers=1, context=16, short_context=16, block=128
    )
    nats = script.train(recipe, tmp_path / "text.txt", 40, None, tmp_path / "out")
    assert nats < 1.5
    assert sy.load(tmp_path / "out").context_length == 16

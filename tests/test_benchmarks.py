"""The benchmark suite on tiny shapes: all say the same, and what is measured becomes JSON and a table."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import all as everything
from benchmarks import chunks, contest, decode, forms, judged, machine, memory, pages, rolling, startup
from benchmarks.peers import OURS, Setting, Unavailable, prepare
from benchmarks.subjects import Subject, load_subject
from systolic.backends.processor import in_words, this_processor

pytestmark = pytest.mark.usefixtures("quick_jax")


@pytest.fixture(scope="module")
def llama() -> Subject:
    return load_subject("llama-tiny")


@pytest.fixture(scope="module")
def mistral() -> Subject:
    return load_subject("mistral-tiny")


def texts(peer: str, subject: Subject, setting: Setting, prompt: int, tokens: int) -> np.ndarray:
    contestant = prepare(peer, subject, setting)
    first = contestant.prefill(subject.prompts(setting.rows, prompt))
    return np.concatenate([first[:, None], contestant.decode(tokens)], axis=1)


@pytest.mark.parametrize("dtype", ["f32", "int8"])
def test_jax_by_hand_says_the_same(llama, dtype):
    setting = Setting(dtype, capacity=128)
    ours = texts(OURS, llama, setting, 20, 30)
    assert len(set(ours.ravel().tolist())) > 5  # no text that repeats itself would show a mistake
    same = 31 if dtype == "f32" else 15  # rounded weights make near ties
    np.testing.assert_array_equal(texts("jax", llama, setting, 20, 30)[:, :same], ours[:, :same])


def test_jax_by_hand_grows_its_cache_and_reads_prompts_in_blocks(llama):
    setting = Setting(capacity=512)
    ours = texts(OURS, llama, setting, 250, 200)
    np.testing.assert_array_equal(texts("jax", llama, setting, 250, 200), ours)


@pytest.mark.parametrize("prompt", [5, 40])
def test_jax_by_hand_has_a_ring_and_rows(mistral, prompt):
    """Prompts that fit into the ring of 16 and that go beyond it; then around it twice."""
    setting = Setting(rows=2, capacity=96)
    ours = texts(OURS, mistral, setting, prompt, 40)
    np.testing.assert_array_equal(texts("jax", mistral, setting, prompt, 40), ours)


def test_jax_by_hand_copies_no_cache(mistral):
    """A step writes into what it was given: a program that copies its caches would be too easy to beat."""
    jax = prepare("jax", mistral, Setting(capacity=96))
    jax.prefill(mistral.prompts(1, 20))
    given = jax._weights, jax._cache, jax._token, jax._position, 5
    text = jax._steps.lower(*given).compile().as_text()
    shape = ",".join(map(str, jax._cache[0][0].shape))
    assert f"f32[{shape}]" in text
    assert [line for line in text.splitlines() if f"f32[{shape}]" in line and " copy(" in line] == []


@pytest.mark.parametrize("peer", ["jax", "transformers"])
@pytest.mark.parametrize("model", ["mamba-tiny", "lstm-tiny"])
def test_peers_of_recurrent_models_say_the_same(model, peer):
    pytest.importorskip(peer, reason=f"{peer} is not installed")
    subject, setting = load_subject(model), Setting(rows=2, capacity=96)
    if model == "lstm-tiny":  # whose random cells are too weak to be heard
        louder = {name: 3 * array if array.ndim == 2 else array for name, array in subject.weights.items()}
        subject = replace(subject, weights=louder)
    for prompt in (9, 64):  # which the associative scan does not read, and which it does
        ours = texts(OURS, subject, setting, prompt, 16)
        assert len(set(ours.ravel().tolist())) > 5
        np.testing.assert_array_equal(texts(peer, subject, setting, prompt, 16), ours)


PACKAGES = {"llama.cpp": "llama_cpp"}
ATTENTION = ["transformers", "onnxruntime", "openvino"]
CELLS = {
    "llama-tiny": [*ATTENTION, "llama.cpp"],
    "gpt2-tiny": [*ATTENTION, "llama.cpp", "jax"],
    "mistral-tiny": ATTENTION,  # whose window of 16 ends within the text
    "mamba-tiny": ["llama.cpp"],
}


@pytest.mark.parametrize(("model", "peer"), [(model, peer) for model in CELLS for peer in CELLS[model]])
def test_a_peer_says_the_same(model, peer):
    pytest.importorskip(PACKAGES.get(peer, peer), reason=f"{peer} is not installed")
    subject, setting = load_subject(model), Setting(rows=2, capacity=64, threads=1)  # some spin on busy cores
    np.testing.assert_array_equal(texts(peer, subject, setting, 9, 12), texts(OURS, subject, setting, 9, 12))


@pytest.mark.parametrize(
    ("model", "dtype"), [("llama-tiny", "bf16"), ("gpt2-tiny", "int8"), ("mamba-tiny", "bf16")]
)
def test_jax_by_hand_keeps_weights_in_fewer_bits(model, dtype):
    """Vectors are cut into two numbers of few bits, so that nothing but the weights is rounded."""
    subject, setting = load_subject(model), Setting(dtype, capacity=64)
    np.testing.assert_array_equal(texts("jax", subject, setting, 9, 8), texts(OURS, subject, setting, 9, 8))


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_a_gguf_file_holds_the_weights(llama, dtype, tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from benchmarks.peers.gguf_file import write_gguf

    path = tmp_path / "tiny.gguf"
    write_gguf(llama, dtype, path)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("llama.block_count").contents() == 2
    assert reader.get_field("llama.vocab_size").contents() == 256
    found = {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    assert len(found) == len(llama.weights)
    error = {"f32": 0, "bf16": 2.0**-8, "int8": 0.5 / 127}[dtype]
    down = llama.weights["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], down, atol=error * np.abs(down).max() * 1.01)
    q = llama.weights["model.layers.0.self_attn.q_proj.weight"]
    # Value 5 of head 1 turns with value 13 of it: they lie side by side.
    np.testing.assert_allclose(found["blk.0.attn_q.weight"][26:28], q[[21, 29]], atol=error * 0.6)
    np.testing.assert_array_equal(found["output_norm.weight"], llama.weights["model.norm.weight"])


def test_who_is_absent_is_named(mistral, llama):
    with pytest.raises(Unavailable, match="no form of weights kept as int4-32"):
        prepare("jax", llama, Setting("int4-32"))
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    with pytest.raises(Unavailable, match="written for llama, mistral, gpt2, not for mamba"):
        prepare("onnxruntime", load_subject("mamba-tiny"), Setting())
    with pytest.raises(SystemExit, match="no peer is called vllm; known: jax"):
        prepare("vllm", llama, Setting())
    with pytest.raises(SystemExit, match="llama-9b: is no model; known: llama-0"):
        load_subject("llama-9b")


def test_a_run_as_json_and_as_a_table(llama):
    settings = [Setting("f32", capacity=64), Setting("int4-64", capacity=64)]
    record = decode.measure(llama, ["jax"], settings, prompt=4, tokens=3, rounds=2)
    assert record.different == []
    assert [row["name"] for row in record.rows] == ["systolic f32", "JAX by hand, f32", "systolic int4-64"]
    assert record.absent == {"jax, int4-64": "it has no form of weights kept as int4-64"}
    assert all(len(row["tokens_per_second"]) == 2 for row in record.rows)
    assert record.rows[0]["ours_is_times"] == {OURS: [1, 1]}
    assert record.rows[1]["same_tokens"] == (3, 3)
    assert json.loads(json.dumps(asdict(record)))["rows"][1]["dtype"] == "f32"
    shown = decode.table(record)
    assert re.search(r"^\| JAX by hand, f32 \| 0 MB \| [\d,.]+ \([\d,.]+ to [\d,.]+\) \|", shown, re.M)
    assert shown.endswith("- absent: jax, int4-64: it has no form of weights kept as int4-64")


def test_other_tokens_are_found(llama):
    setting = Setting()
    tokens, contestant = np.array([[1, 2, 3]]), prepare("jax", llama, setting)
    entries = [
        contest.Entry(name, contestant, name, setting, lambda _: contest.Turn(0, tokens), tokens=chosen)
        for name, chosen in {"ours": tokens, "theirs": np.array([[1, 9, 3]])}.items()
    ]
    found = contest.different_tokens(entries)
    assert found == ["theirs and ours choose different tokens from token 1 on"]
    assert contest.agreement(entries[1], entries) == (1, 3)


def test_long_texts_are_compared_block_by_block(mistral):
    setting = Setting(capacity=80)
    record = memory.measure(mistral, ["jax"], [setting], tokens=48, block=16)
    assert record.different == []
    ours, theirs = record.rows
    assert len(ours["tokens_per_second"]) == len(theirs["ours_is_times"][OURS]) == 2
    assert len(ours["grown_bytes"]) == 3
    assert "window 16, 48 tokens in blocks of 16" in memory.table(record)


def test_first_tokens_of_processes():
    record = startup.measure("llama-tiny", [], rounds=1, threads=1, is_cold=True)
    reading, ours = record.rows
    assert reading["times_reading"] == [1]
    assert ours["seconds"][0] > reading["seconds"][0]
    assert record.settings["cold"]


def test_judgements_say_what_is_missed():
    results = {
        "rows": [
            {"name": "systolic f32", "peer": OURS, "of_bandwidth": [0.9, 0.95, 0.91]},
            {"name": "llama.cpp, f32", "peer": "llama.cpp", "ours_is_times": {OURS: [1.1, 1.3, 1.15]}},
        ]
    }
    here = {"f32": [asdict(judgement) for judgement in judged.judge_f32(results)]}
    assert judged.table({"measured": here}).splitlines() == [
        "| what | reach | measured |  |",
        "|---|---|---|---|",
        "| f32 decode, of the bandwidth | ≥ 0.9 | 0.91 (0.90 to 0.95) | met |",
        "| f32 decode ÷ llama.cpp, f32 | ≥ 1.2 × | 1.15 (1.10 to 1.30) × | missed |",
    ]
    at_most = judged.Judgement("µs", 100, [90, 120, 80], "µs", at_least=False)
    assert at_most.verdict[-1] == "met"


def test_judgements_of_all_kinds_of_machines_stand_side_by_side():
    def prefill(ratio, best):
        return asdict(judged.Judgement("prefill ÷ best", 1.0, [ratio], than=best))

    overhead = asdict(judged.Judgement("overhead", 10, [4.0], "µs", at_least=False))
    wide = {"prefill": [prefill(1.1, "JAX")]}
    narrow = {"prefill": [prefill(0.9, "torch")], "overhead": [overhead]}
    assert judged.table({"AVX-512": wide, "AVX2": narrow}).splitlines() == [
        "| what | reach | AVX-512 |  | AVX2 |  |",
        "|---|---|---|---|---|---|",
        "| prefill ÷ best | ≥ 1 × | 1.10 (1.10 to 1.10) × JAX | met | 0.90 (0.90 to 0.90) × torch | missed |",
        "| overhead | ≤ 10 µs |  |  | 4.00 (4.00 to 4.00) µs | met |",
    ]


def test_rolling_measures_both_forms():
    options = argparse.Namespace(hidden=64, run_depths=[6], positions=[1], rounds=2, dtype="f32")
    (measured,) = rolling.measure(options, "llama", 6)
    assert len(measured.ratios) == 2
    *_, unrolled, rolled, call = measured.cells
    assert re.fullmatch(r"[\d.]+ s [\d.]+ s [\d.]+ \([\d.]+ to [\d.]+\)", f"{unrolled} {rolled} {call}")


def test_formats_of_ours_stand_beside_the_numbers_that_they_keep(llama):
    """A second contestant of ours takes part in its own dtype only, and each has a column of ratios."""
    settings = [Setting("f32", capacity=64), Setting("int8", capacity=64)]
    record = decode.measure(llama, ["ours-int8-32", "jax"], settings, prompt=4, tokens=3, rounds=1)
    names = ["systolic f32", "JAX by hand, f32", "systolic int8", "systolic int8-32", "JAX by hand, int8"]
    assert [row["name"] for row in record.rows] == names
    heading, _, ours, *_, theirs = decode.table(record).splitlines()[2:]
    assert "| ours is … times as fast | int8-32 is … times as fast |" in heading
    assert ours.split(" | ")[3:5] == ["", ""]
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", cell) for cell in theirs.split(" | ")[3:5])


def test_tables_of_every_machine_are_written_between_their_marks(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text("before\n<!-- table f32 -->\nold\n<!-- end of f32 -->\nbehind\n")
    kept = {
        "machine": {
            "kind": "avx2",
            "processor": "AMD EPYC (family 25, model 1)",
            "threads": 2,
            "memory": 25e9,
        },
        "command": "python -m x",
        "date": "2026-01-02",
        "commit": "abc",
        "text": "| a |",
        "judgements": [],
    }
    newer = kept["machine"] | {"processor": "AMD EPYC (family 25, model 17)"}
    device = newer | {"kind": "nvidia-h200", "device": "NVIDIA H200"}
    places = {
        "d/f32": device,
        "a/gpt2": newer,  # which has no marks
        "a-1/f32": kept["machine"],
        "a-17/f32": newer,
    }
    for place, here in places.items():
        (results / place).parent.mkdir(parents=True, exist_ok=True)
        (results / f"{place}.json").write_text(json.dumps(kept | {"machine": here}))
    everything.write_page(page, results)
    measured = "`python -m x` (2026-01-02, commit abc):\n\n| a |"
    shown = "\n\n".join(
        [
            f"**AVX2** (AMD EPYC (family 25, model 17), 25 GB): {measured}",
            "<details><summary>AVX2 (AMD EPYC (family 25, model 1), 25 GB)</summary>",
            measured,
            "</details>\n\n<details><summary>nvidia-h200 (NVIDIA H200, 25 GB)</summary>",
            measured,
            "</details>",
        ]
    )
    wanted = f"before\n<!-- table f32 -->\n{shown}\n<!-- end of f32 -->\nbehind\n"
    assert page.read_text() == wanted
    everything.write_page(page, results)
    assert page.read_text() == wanted


def test_the_page_is_what_was_measured(tmp_path):
    written = everything.ROOT / "docs" / "performance.md"
    page = tmp_path / "page.md"
    page.write_text(written.read_text(encoding="utf-8"), encoding="utf-8")
    everything.write_page(page, everything.ROOT / "benchmarks" / "results")
    assert page.read_text(encoding="utf-8") == written.read_text(encoding="utf-8")


def test_every_table_has_its_marks_in_the_page():
    text = (everything.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in (*everything.TABLES, "judged"):
        assert everything.replaced(text, name, "x").count(f"<!-- table {name} -->\nx\n<!-- end of") == 1, name


def test_what_was_measured_is_not_repeated_and_what_does_not_fit_is_not_begun(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- table pages -->\n\n<!-- end of pages -->\n")
    given = ["--tables", "pages", "--json", str(tmp_path), "--docs", str(page)]
    monkeypatch.setattr("sys.argv", ["all", *given])
    short = everything.Table("pages", "--rounds 1 --megabytes 8", 9)
    monkeypatch.setattr(everything, "TABLES", {"pages": short})
    here = machine.describe()
    (tmp_path / "theirs").mkdir()
    everything.main()
    assert f"**{in_words(here['kind'])}** ({this_processor().name}, " in page.read_text()
    (tmp_path / machine.folder_of(here) / "pages.json").rename(tmp_path / "theirs" / "pages.json")
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["all", *given, "--list"])
    everything.main()
    theirs, ours = capsys.readouterr().out.splitlines()  # what another machine took is nothing here
    assert theirs.split()[:2] == ["pages", "theirs"]
    assert ours.split()[:4] == ["pages", machine.folder_of(here), "never", "measured"]
    monkeypatch.setattr("sys.argv", ["all", *given])
    everything.main()
    assert page.read_text().count("| large |") == 2
    everything.main()
    assert capsys.readouterr().out.splitlines()[-1] == "pages: measured already"
    monkeypatch.setattr("sys.argv", ["all", *given, "--again", "--budget-minutes", "0"])
    everything.main()
    assert capsys.readouterr().out.startswith("pages: not begun, it takes ")
    monkeypatch.setattr("sys.argv", ["all", *given, "--device", "gpu"])
    with pytest.raises(SystemExit, match="no table on a gpu is called pages"):
        everything.main()


def test_small_and_large_pages_are_read_by_turns():
    rates = pages.measure(1 << 20, rounds=2)
    assert [len(found) for found in rates.values()] == [2, 2]
    assert pages.table(rates).splitlines()[2].startswith("| large | ")


def test_a_table_of_forms_is_held_against_one_form_for_all():
    case = forms.Case("llama-tiny", "f32", prompt=8, tokens=2, native=False)
    found = forms.measure(case, rounds=2)
    assert list(found) == ["table", "dot"]
    assert [len(seconds) for seconds in found.values()] == [2, 2]
    row = forms.table([case], [found]).splitlines()[2]
    assert row.startswith("| llama-tiny, f32, 2 steps, without kernels | `dot` | ")


def test_chunks_are_compared_with_the_soonest_way_to_read(llama):
    record = chunks.measure(llama, "f32", (3, 20, 70), largest=32, capacity=96, rounds=1, read=True)
    assert [call.positions for call in record.calls] == [1, 2, 4, 8, 16, 32]
    assert all(call.predicted > 0 and min(call.seconds) > 0 for call in record.calls)
    for prompt in record.prompts:
        assert min(sum(prompt.cut), sum(prompt.soonest)) >= prompt.length
        assert prompt.of_soonest >= 1 - 1e-9
        assert len(prompt.read) == 1
    assert "measured ÷ predicted" in chunks.shown(record)
    assert chunks.soonest(21, {1: 1.0, 4: 2.0, 16: 3.0}) == [16, 4, 1]

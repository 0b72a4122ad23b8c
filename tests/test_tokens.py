"""Text to ids and back, against recorded outputs of the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from systolic.ir.errors import SystolicError
from systolic.runner.tokens import StopStrings, TextStream, Tokenizer

ORACLES = ["llama_gqa_llama3", "qwen2"]


def read_cases(shared: Path, model: str, file: str):
    folder = shared / "oracle" / model
    return Tokenizer(folder / "tokenizer.json"), json.loads((folder / file).read_text())


def streamed(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    stream = TextStream(tokenizer, prompt or [])
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("model", ORACLES)
def test_encode_decode_and_stream_as_recorded(shared, model):
    tokenizer, recorded = read_cases(shared, model, "tokenizer_cases.json")
    for case in recorded["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded_skip_special"]
        *pieces, rest = streamed(tokenizer, case["ids"])
        assert pieces == [piece or "" for piece in case["stream_skip_special"]]
        assert "".join(pieces) + rest == case["decoded_skip_special"]


@pytest.mark.parametrize("model", ORACLES)
def test_arbitrary_ids_stream_to_what_decode_gives(shared, model):
    tokenizer, recorded = read_cases(shared, model, "tokenizer_cases.json")
    for case in [*recorded["id_sequences"], *recorded["prefix_decodes"]]:
        decoded = case.get("decoded_skip_special", case["decoded"])
        assert tokenizer.decode(case["ids"]) == decoded
        assert "".join(streamed(tokenizer, case["ids"])) == decoded


@pytest.mark.parametrize("model", ORACLES)
def test_text_behind_a_prompt_as_recorded(shared, model):
    tokenizer, cases = read_cases(shared, model, "text_cases.json")
    for case in cases:
        assert tokenizer.encode(case["prompt"]) == case["ids"]
        *pieces, rest = streamed(tokenizer, case["greedy"], case["ids"])
        assert pieces == [piece or "" for piece in case["stream"]]
        assert case["prompt"] + "".join(pieces) + rest == case["full_text"]


@pytest.fixture(scope="module")
def stories(shared):
    folder = shared / "real" / "stories260K"
    return Tokenizer(folder / "tokenizer.json"), json.loads((folder / "reference.json").read_text())["cases"]


def test_stories_ids_are_exact_and_spaces_survive(stories):
    tokenizer, cases = stories
    for case in cases:
        assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]
        text = "".join(streamed(tokenizer, case["new_ids"], case["prompt_ids"]))
        assert case["prompt"] + text == case["text"]
        assert "".join(streamed(tokenizer, case["prompt_ids"] + case["new_ids"])) == case["text"]


def test_a_character_split_between_prompt_and_reply_comes_out_whole(stories):
    tokenizer, _ = stories
    ids = tokenizer.encode("a 猫 b")
    for cut in range(1, len(ids)):
        said = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
        assert said + "".join(streamed(tokenizer, ids[cut:], ids[:cut])) == "a 猫 b"


def test_bytes_that_turn_out_to_be_no_text_end_as_replacement(stories):
    tokenizer, _ = stories
    byte_e4, letter_a = 3 + 0xE4, 3 + ord("A")  # byte tokens start at id 3
    stream = TextStream(tokenizer)
    assert stream.push(letter_a) == "A"
    assert stream.push(byte_e4) == ""
    assert stream.finish() == "\ufffd\ufffd"  # a run of byte tokens is valid as a whole or not at all


def test_bos_follows_tokenizer_config(shared):
    path = shared / "oracle" / "llama_gqa_llama3" / "tokenizer.json"  # its template adds <bos> = 1
    plain = Tokenizer(path).encode("Hello")[1:]
    assert Tokenizer(path, add_bos=False, bos_id=1).encode("Hello") == plain
    assert Tokenizer(path, add_bos=True, bos_id=1).encode("Hello") == [1, *plain]
    without = shared / "oracle" / "qwen2" / "tokenizer.json"  # no template
    assert Tokenizer(without, add_bos=True, bos_id=2).encode("Hello")[0] == 2
    assert Tokenizer(without, add_bos=True, bos_id=None).encode("") == []


def test_truncation_stored_in_the_file_is_ignored(shared, tmp_path):
    content = json.loads((shared / "oracle" / "qwen2" / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer(tmp_path / "tokenizer.json").encode("a long enough text")) > 3


def test_an_unreadable_file_and_undecodable_text_are_clear_errors(shared, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SystolicError, match=r"tokenizer\.json is not a readable"):
        Tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(shared / "oracle" / "qwen2" / "tokenizer.json")
    with pytest.raises(SystolicError, match="not UTF-8"):
        tokenizer.encode("\udcff")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        (["END"], "abc END def", "abc "),
        (["END"], "ENENDx", "EN"),
        (["aab"], "aaab", "a"),
        (["abcd", "bc"], "xabcd", "xa"),
        (["bc", "abc"], "xabc", "x"),
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo"),
        (["never"], "nev nevev", "nev nevev"),
        ([], "free", "free"),
    ],
)
def test_stop_strings_cut_alike_however_the_text_arrives(stops, text, shown, size):
    watch, out, ended = StopStrings(stops), "", False
    for start in range(0, len(text), size):
        piece, ended = watch.push(text[start : start + size])
        out += piece
        assert shown.startswith(out), "a part of a stop string was shown"
        if ended:
            break
    assert out + ("" if ended else watch.finish()) == shown
    assert ended == any(stop in text for stop in stops)

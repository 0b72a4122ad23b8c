"""Constrained text: whatever the model and the seed, it fits; and constraint changes nothing else."""

from __future__ import annotations

import json
import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import systolic as sy
from systolic.runner.grammar import Grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n", "é"]}, "maxItems": 3},
        "nested": {"anyOf": [{"type": "null"}, {"const": {"x": 1.5}}]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def fits_schema(text: str) -> bool:
    value = json.loads(text)
    return (
        {"name", "age", "tags"} <= value.keys() <= {"name", "age", "tags", "nested"}
        and isinstance(value["name"], str)
        and len(value["name"]) <= 8
        and type(value["age"]) is int
        and 0 <= value["age"] <= 150
        and len(value["tags"]) <= 3
        and set(value["tags"]) <= {"a", "b\n", "é"}
        and value.get("nested") in (None, {"x": 1.5})
    )


@cache
def scrambled(name: str, **options) -> sy.Executable:
    """A model whose weights say nothing, with its own tokenizer."""
    from dataclasses import replace

    model = sy.load(name)
    random = np.random.default_rng(1)
    weights = {n: random.normal(size=w.shape, scale=0.3).astype(w.dtype) for n, w in model.weights.items()}
    model = replace(model, weights=weights)
    return sy.compile(model, backend="numpy", capacity=256, chunk=16, **options)


@pytest.fixture(scope="module")
def stories(shared):
    return scrambled(str(shared / "real" / "stories260K"))


def written(executable, tokens, prompt) -> str:
    return executable.text_behind(list(executable.prompt_ids(prompt)), tokens)


@given(seed=st.integers(0, 2**64 - 1), heat=st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=40, deadline=None)
def test_a_schema_is_always_kept(seed, heat):
    exe = scrambled("shakespeare")
    tokens = exe.generate("Answer:", json_schema=SCHEMA, max_new_tokens=240, temperature=heat, seed=seed)
    text = written(exe, tokens, "Answer:")
    assert fits_schema(text), text


@pytest.mark.parametrize("seed", range(10))
def test_also_where_tokens_are_pieces_and_bytes(stories, seed):
    """SentencePiece with byte fallback, and a model that has an end token."""
    steps = list(
        stories.steps("Once", json_schema=SCHEMA, max_new_tokens=240, temperature=1.0, top_p=0.9, seed=seed)
    )
    text = "".join(step.text for step in steps)
    assert fits_schema(text), text
    assert steps[-1].finish_reason in ("stop", "eos")


@pytest.mark.parametrize(
    "pattern", [r"[0-9]{3}-[0-9]{4}", r"(yes|no|perhaps), (sir|madam)", r"[α-ω]{4}", r"a{2,5}b?"]
)
def test_regular_expressions(stories, pattern):
    for exe in (stories, scrambled("shakespeare")):
        for seed in range(5):
            tokens = exe.generate("Once", regex=pattern, max_new_tokens=60, temperature=1.0, seed=seed)
            assert re.fullmatch(pattern, written(exe, tokens, "Once"))


def test_grammars():
    exe = scrambled("shakespeare")
    grammar = 'start: term ("+" term){1,3}\nterm: "(" start ")" | /[0-9]{1,2}/ | "x"'
    for seed in range(10):
        tokens = exe.generate("=", grammar=grammar, max_new_tokens=200, temperature=1.0, seed=seed)
        text = written(exe, tokens, "=")
        if len(tokens) < 200:  # brackets may have no end
            eval(re.sub(r"\b0+(\d)", r"\1", text), {"x": 1})
            assert re.fullmatch(r"[0-9x+()]+", text)


def test_what_a_real_model_would_say_is_still_its_choice(shared):
    """Where the best token is allowed it is taken, and the words are those of the model."""
    exe = sy.compile(sy.load(shared / "real" / "stories260K"), backend="numpy")
    free = exe.generate("Once upon a time", max_new_tokens=20)
    text = written(exe, free, "Once upon a time")
    held = exe.generate("Once upon a time", max_new_tokens=20, regex="(?s:.*)")
    assert held == free
    assert exe.generate("Once upon a time", max_new_tokens=20, regex=re.escape(text)) == free
    name = written(
        exe, exe.generate("The cat's name was", regex=" [A-Z][a-z]{2,5}\\.", max_new_tokens=9), "x"
    )
    assert re.fullmatch(r" ?[A-Z][a-z]{2,5}\.", name)


def test_rows_of_a_batch_and_their_random_numbers():
    exe = scrambled("shakespeare", batch=3)
    options = {"regex": "[a-z]{12}", "temperature": 1.0, "seed": 4, "max_new_tokens": 30}
    rows = exe.generate_batch(["One", "Two", "Two", "Two"], **options)
    texts = [written(exe, tokens, "Two") for tokens in rows]
    assert all(re.fullmatch("[a-z]{12}", text) for text in texts)
    assert len(set(texts)) == 4
    assert rows[0] == exe.generate("One", **options)


def test_scheduled_requests_are_those_alone():
    exe = scrambled("shakespeare", batch=3)
    settings_ = [
        {"json_schema": SCHEMA, "temperature": 1.0, "seed": 1, "max_new_tokens": 240},
        {"regex": "[a-c]{20}", "temperature": 2.0, "seed": 2, "max_new_tokens": 40},
        {"temperature": 1.0, "seed": 3, "max_new_tokens": 40},
        {"regex": "(la )+la", "seed": 4, "max_new_tokens": 9},
    ]
    scheduler = exe.scheduler()
    requests = [scheduler.submit("Say:", **asked) for asked in settings_]
    for request, asked in zip(requests, settings_, strict=True):
        assert request.result() == exe.generate("Say:", **asked)
    assert fits_schema(requests[0].text)
    assert [request.finish_reason for request in requests[:2]] == ["stop", "stop"]
    before = str(exe.programs)
    scheduler.submit("Say:", regex="[0-9]+ more").result()
    assert str(exe.programs) == before


def test_a_session_may_be_set_back():
    exe = scrambled("shakespeare")
    session = exe.session("Tell", regex="[ab]{6}[cd]{6}", temperature=1.0, max_new_tokens=60)
    first = [step.token for step in session.steps(4)]
    start = len(exe.prompt_ids("Tell"))
    session.edit(start + 1, remove=len(first) - 1)
    *_, last = session.steps()
    assert re.fullmatch("[ab]{6}[cd]{6}", session.text.removeprefix("Tell"))
    assert last.finish_reason == "stop"
    session.edit(start, remove=1, insert="zzz")
    with pytest.raises(sy.SystolicError, match="new token 0, is not one that the regex allows"):
        next(session.steps())


def test_a_checked_session_keeps_its_form():
    exe = scrambled("shakespeare")
    session = exe.session("Tell", regex="[ab]{8}", temperature=1.0, max_new_tokens=30)
    session.generate_checked(lambda tokens, text: 1 if text.endswith("bb") else 0, retries=200)
    text = session.text.removeprefix("Tell")
    assert re.fullmatch("[ab]{8}", text)
    assert "bb" not in text


def test_where_a_text_ends(stories):
    """An end token where the model has one, else as soon as the text fits; the length may cut it off."""
    plain = scrambled("shakespeare")
    assert written(plain, plain.generate("x", regex="a(ab)*"), "x") == "a"
    steps = list(
        stories.steps("x", regex="[ab]{3,}", temperature=1.0, max_new_tokens=60, logit_bias={2: 50.0})
    )
    assert steps[-1].finish_reason == "eos"
    assert re.fullmatch("[ab]{3,}", "".join(step.text for step in steps))
    steps = list(stories.steps("x", regex="[ab]{300}", max_new_tokens=5))
    assert steps[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"regex": "["}, "regex cannot be used: .*unclosed character class"),
        ({"regex": ""}, "regex must be a string that is not empty"),
        ({"regex": "a", "json_schema": {}}, "json_schema and regex exclude each other"),
        ({"grammar": "start: nothing"}, 'grammar cannot be used: line 1: unknown name: "nothing"'),
        ({"json_schema": {"type": "strin"}}, "json_schema cannot be used: .*Invalid type: strin"),
        ({"json_schema": "{"}, "json_schema is no JSON schema"),
        ({"json_schema": 5}, "json_schema is no JSON schema"),
    ],
)
def test_what_is_no_grammar(asked, said):
    with pytest.raises(sy.SystolicError, match=said):
        scrambled("shakespeare").generate("x", **asked)


def test_what_cannot_be_held_to_a_grammar(shared):
    exe = scrambled("shakespeare")
    with pytest.raises(sy.SystolicError, match="a beam search cannot be held to a grammar"):
        exe.beam_search("x", regex="a")
    with pytest.raises(sy.SystolicError, match="cannot be checked against a grammar"):
        list(exe.speculate("x", regex="a"))
    bare = sy.compile(sy.load(shared / "oracle" / "mamba"), backend="numpy")
    if bare.tokenizer is None:
        with pytest.raises(sy.SystolicError, match="has no tokenizer, so its text cannot be constrained"):
            bare.generate([1], regex="a")


def test_grammars_are_values():
    assert Grammar.of_settings(None, None, None) is None
    one, other = (Grammar.of_settings(schema, None, None) for schema in ({"type": "null"}, '{"type":"null"}'))
    assert one == other


def test_on_the_command_line(cli, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    common = ("run", "--backend", "numpy", "--prompt", "x", "--json", "--max-new-tokens", 240)
    status, out, err = cli(*common, "--json-schema", file)
    assert status == 0, err
    assert fits_schema(json.loads(out)["text"])
    status, out, _ = cli(*common, "--regex", "[0-9]{4}")
    assert re.fullmatch("[0-9]{4}", json.loads(out)["text"])
    grammar = tmp_path / "grammar.lark"
    grammar.write_text('start: "yes" | "no"')
    status, out, _ = cli(*common, "--grammar", grammar)
    assert json.loads(out)["text"] in ("yes", "no")
    status, _, err = cli(*common, "--regex", "[")
    assert (status, err.count("\n")) == (2, 1)

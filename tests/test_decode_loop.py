"""The decode loop: the tokens of stepping from the host, on every kind of state, in place."""

from __future__ import annotations

import dataclasses
import json
import re
import time

import numpy as np
import pytest
from test_runner import BACKENDS, V, attention_step, random_weights, recurrent_step, tiny

import systolic as sy
from systolic.compiler.program import NO_TOKEN
from systolic.ir.dumps.json_form import from_json, to_json
from systolic.ir.verify import verify
from systolic.models.load import load
from systolic.runner.choice import Chooser
from systolic.runner.compilation import compile
from systolic.runner.decode_loop import LONGEST_CALL, DecodeLoop, Pace, reads_last_tokens
from systolic.runner.generate import Generation
from systolic.runner.sampling import Row
from systolic.runner.sampling import filters as f
from systolic.runner.sampling import penalties as p
from systolic.runner.stop_automaton import stop_table

pytestmark = pytest.mark.optimised

SETTINGS = {
    "greedy": {},
    "drawn": {"temperature": 1.3, "top_k": 9, "seed": 5},
    "remembering": {"temperature": 1.0, "seed": 2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    "learning": {
        "temperature": 2.0,
        "seed": 3,
        "mirostat_tau": 2.0,
        "xtc_probability": 0.3,
        "dry_multiplier": 1.0,
    },
}


def stepped(executable: sy.Executable, prompt: list[int], stream: int = 0, **settings: object) -> list[int]:
    """The tokens that are chosen on the host, one call of the decode step for each."""
    generation = Generation(**settings)
    chooser = Chooser(executable, len(prompt), generation)
    rows, text = executable.batch(), list(prompt)
    logits = rows.read({0: prompt})[0]
    for _ in range(generation.max_new_tokens):
        text.append(chooser.choose(logits, text, attempt=stream))
        if len(text) > executable.options.capacity:
            break
        logits = rows.read({0: text[-1:]})[0]
    return text[len(prompt) :]


@pytest.mark.usefixtures("quick_xla")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [attention_step, recurrent_step])
def test_the_loop_makes_the_tokens_of_the_host(step, backend):
    executable = tiny(step, backend=backend, chunk=8)
    assert {state.kind for state in executable.states} == (
        {"append", "ring"} if step is attention_step else {"carry", "tail"}
    )
    prompt = np.random.default_rng(3).integers(0, V, 11).tolist()
    for name, settings in SETTINGS.items():
        if name == "learning" and step is recurrent_step:
            continue  # its memory is the chain's own, and the program is large
        expected = stepped(executable, prompt, max_new_tokens=30, **settings)
        assert executable.generate(prompt, max_new_tokens=30, **settings) == expected


@pytest.mark.parametrize("per_call", [1, 2, 7, 64])
def test_how_many_tokens_a_call_makes_changes_none(per_call):
    executable, prompts = tiny(batch=2), [[3, 1, 4], [1, 5, 9, 2, 6]]
    settings = {"max_new_tokens": 20, **SETTINGS["remembering"]}
    expected = executable.generate_batch(prompts, **settings)
    assert executable.generate_batch(prompts, tokens_per_call=per_call, **settings) == expected
    steps = list(executable.steps(prompts[0], tokens_per_call=per_call, **settings))
    assert [step.token for step in steps] == expected[0]
    assert [step.finish_reason for step in steps] == [None] * 19 + ["length"]


@pytest.mark.parametrize(
    ("lengths", "is_first"),
    [
        ([14, 16], True),
        ([31, 32], True),
        ([16, 2], True),
        ([17, 17], False),
        ([1, 1], False),
        ([30, 3], False),
    ],
)
@pytest.mark.parametrize("name", ["remembering", "learning"])
def test_the_first_tokens_are_chosen_from_what_the_prompts_yield(lengths, is_first, name):
    """Where the last tokens fit into the last chunk, no step reads them; the tokens are those of one row."""
    executable = tiny(batch=2, chunk=16)
    prompts = [np.random.default_rng(length).integers(0, V, length).tolist() for length in lengths]
    settings = SETTINGS[name]
    assert reads_last_tokens(lengths, executable.options) == is_first
    made = executable.generate_batch(prompts, max_new_tokens=1, **settings)
    assert any("generate" in program.name for program in executable.programs) != is_first
    longer = executable.generate_batch(prompts, max_new_tokens=12, **settings)
    assert [row[:1] for row in longer] == made
    for row, prompt in enumerate(prompts):
        assert longer[row] == stepped(executable, prompt, row, max_new_tokens=12, **settings)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_end_alone_and_the_loop_with_the_last(backend):
    executable = tiny(batch=3, backend=backend)
    alone = executable.generate([7], max_new_tokens=12)
    stop = alone[4]
    loop = DecodeLoop(executable, [Row(), Row(), Row()], [[stop], [], []])
    made = loop.make(np.array([7, 7, 7], np.int32), np.array([12, 3, 0], np.int32))
    assert made.tokens.shape == (3, LONGEST_CALL)
    assert made.counts.tolist() == [alone.index(stop) + 1, 3, 0]
    assert made.tokens[0, : alone.index(stop) + 1].tolist() == alone[: alone.index(stop) + 1]
    assert made.tokens[1, :3].tolist() == alone[:3]
    assert (made.tokens[:, 12:] == NO_TOKEN).all()
    assert loop.rows.seen.tolist() == made.counts.tolist()  # a token is read in the step after it
    more = loop.make(made.tokens[[0, 1, 2], made.counts - 1], np.array([0, 5, 0], np.int32))
    assert more.tokens[1, :5].tolist() == alone[3:8]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_begins_behind_one_that_may_still_run(backend):
    """It takes from the device where each row is; a row that has ended there rests."""
    executable = tiny(batch=3, backend=backend)
    alone = executable.generate([7], max_new_tokens=12)
    stop, count = alone[4], alone.index(alone[4]) + 1
    loop = DecodeLoop(executable, [Row(), Row(), Row()], [[stop], [], []])
    newest = np.array([7, 7, 7], np.int32)
    first = loop.call(newest, np.array([6, 6, 0], np.int32))
    second = loop.call_behind(first, np.array([6, 5, 2], np.int32))
    third = loop.call_behind(second, np.array([1, 1, 0], np.int32))
    made = loop.finish(first, newest)
    assert [row[:n].tolist() for row, n in zip(made.tokens, made.counts, strict=True)] == [
        alone[:count],
        alone[:6],
        [],
    ]
    more = loop.finish(second, made.newest(newest))
    assert more.counts.tolist() == [0, 5, 2]
    assert more.tokens[1, :5].tolist() == alone[6:11]
    assert more.tokens[2, :2].tolist() == alone[:2]
    last = loop.finish(third, more.newest(made.newest(newest)))
    assert last.counts.tolist() == [0, 1, 0]
    assert last.tokens[1, 0] == alone[11]
    assert loop.rows.seen.tolist() == [count, 12, 2]


def test_tokens_are_made_ahead_where_calls_return_early(monkeypatch):
    events: list[str] = []
    for name in ("call", "call_behind", "finish"):
        method = getattr(DecodeLoop, name)

        def noted(*arguments, name=name, method=method):
            events.append(name)
            return method(*arguments)

        monkeypatch.setattr(DecodeLoop, name, noted)
    calls = {"xla": ["call", "call_behind", "finish", "call_behind", "finish", "finish"]}
    calls["numpy"] = ["call", "finish"] * 3
    for backend, expected in calls.items():
        executable = tiny(backend=backend)
        executable.generate([1, 2], max_new_tokens=1)
        events.clear()
        steps = executable.steps([1, 2], max_new_tokens=13, tokens_per_call=4)
        next(steps)  # from what the prompt yields, or by a call of its own
        events.clear()
        list(steps)
        assert events == expected, backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_only_the_device_has_ended_goes_on(shared, backend, monkeypatch):
    """An automaton may see a stop where the text has none: that costs calls, and no token."""
    folder = shared / "real" / "stories260K"
    case = json.loads((folder / "reference.json").read_text())["cases"][0]
    executable = compile(load(folder), backend=backend, capacity=128, batch=2)
    settings = {"max_new_tokens": 40, "ignore_eos": True}
    plain = executable.generate(case["prompt"], **settings)
    table = np.zeros((2, executable.logit_count), np.int32)
    table[:, plain[5]] = table[:, plain[6]] = table[1] = 1  # each time one of these tokens is said
    monkeypatch.setattr("systolic.runner.stop_automaton.stop_table", lambda *arguments: table)
    for per_call in (1, 3, 64):
        rows = executable.generate_batch(
            [case["prompt"], "Lily"], stop=["never said"], tokens_per_call=per_call, **settings
        )
        assert rows[0] == plain


def test_the_program_is_one_loop_over_states_and_reads_back():
    executable = tiny(recurrent_step)
    program = DecodeLoop(executable, [Row((p.Repetition(1.1), f.TopK(3)), True)], [[]])._program.program
    verify(program.graph, "program")
    (loop,) = (node for node in program.graph.nodes if node.op.name == "loop")
    assert loop.params["early"]
    assert set(program.donated) == {f"state.{state.name}" for state in program.states}
    assert {s.name for s in program.states} > {state.name for state in executable.states}
    again = from_json(json.loads(json.dumps(to_json(program.graph))))
    assert str(again) == str(program.graph)


@pytest.mark.parametrize("name", ["stories", "mamba", "mistral_sliding"])
def test_no_state_is_copied_in_the_loop(shared, name):
    """In XLA's own program, no copy, conversion or transposition has the size of a state."""
    folder = shared / "real" / "stories260K" if name == "stories" else shared / "oracle" / name
    executable = compile(load(folder), backend="xla", capacity=96)
    loop = DecodeLoop(executable, [Row((f.Temperature(0.9),), True)], [[]])
    prepared = loop._program
    types = {state.name: state.type for state in prepared.program.states}
    kept = sum(type_.bytes for type_ in types.values())
    assert prepared.memory.alias_size_in_bytes >= kept
    if name == "stories":  # temporary memory could not hold one of them
        assert prepared.memory.temp_size_in_bytes < min(t.bytes for t in types.values())
    for type_ in types.values():
        if type_.size < 2048:
            continue  # carries of a recurrence are new values, and small
        shape = ",".join(map(str, type_.static_shape))
        moved = re.findall(rf"= f32\[{shape}\]\S* (?:copy|convert|transpose)\(.*", prepared.optimized_text)
        assert not moved


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stop_string_ends_its_row_in_the_loop(shared, backend, monkeypatch):
    folder = shared / "real" / "stories260K"
    case = json.loads((folder / "reference.json").read_text())["cases"][0]
    executable = compile(load(folder), backend=backend, capacity=128)
    calls: list[int] = []
    follow = DecodeLoop._follow

    def counted(loop, made):
        follow(loop, made)
        calls.append(int(made.counts.max()))

    monkeypatch.setattr(DecodeLoop, "_follow", counted)
    seen = set()
    settings = {"stop": ["girl named", " Lily."], "ignore_eos": True, "max_new_tokens": 60}
    for per_call in (1, 5, 64, None):
        calls.clear()
        steps = list(executable.steps(case["prompt"], tokens_per_call=per_call, **settings))
        assert sum(calls) == len(steps)  # no token was made behind the stop
        seen.add((tuple(s.token for s in steps), "".join(s.text for s in steps), steps[-1].finish_reason))
    ((tokens, text, reason),) = seen
    assert (text, reason) == (", there was a little ", "stop")
    monkeypatch.setattr("systolic.runner.stop_automaton.stop_table", lambda *arguments: None)
    assert executable.generate(case["prompt"], **settings) == list(tokens)  # the host sees the same


def test_the_automaton_of_stop_strings(shared):
    tokenizer = compile(load(shared / "oracle" / "qwen2"), backend="numpy").tokenizer
    text = "to be or not to be: né, それ, 🙂!"
    tokens = tokenizer.encode_exactly(text)
    for stop in ("or not", "né", "れ", "🙂", "be:", "to be or nou"):
        table = stop_table(tokenizer, [stop, "never said"], 320)
        state, ended = 0, None
        for at, token in enumerate(tokens):
            state = table[state, token]
            if state == len(table) - 1:
                ended = at
                break
        said = tokenizer.decode(tokens[: len(tokens) if ended is None else ended + 1])
        assert (stop in said) == (ended is not None) == (stop in text)
        if ended:
            assert stop not in tokenizer.decode(tokens[:ended])


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_weights_are_reported(backend):
    graph = sy.trace(attention_step)
    weights = random_weights(graph)
    weights["head"] = np.full_like(weights["head"], np.nan)
    executable = compile(graph, weights, backend=backend, capacity=32)
    for settings in ({}, {"temperature": 1.0}):
        with pytest.raises(
            sy.SystolicError, match="logit nan or inf at new token 0; its weights may be damaged"
        ):
            executable.generate([1], **settings)
    with pytest.raises(sy.SystolicError, match="no token is left to choose from at new token 0"):
        tiny().generate([1], banned_tokens=range(V))


def test_rows_with_settings_of_their_own(shared):
    """What the recorded generations were made with."""
    for name in ("llama_gqa_llama3", "qwen2"):
        folder = shared / "oracle" / name
        model = load(folder)
        outputs = np.load(folder / "generation_cases.npz")
        prompts = np.load(folder / "oracle.npz")
        for case, settings in json.loads((folder / "generation_cases.json").read_text()).items():
            eos = tuple(np.atleast_1d(settings.get("eos_token_id", [])).tolist())
            executable = compile(dataclasses.replace(model, eos_ids=eos), backend="numpy", capacity=96)
            known = {
                "repetition_penalty": settings.get("repetition_penalty", 1.0),
                "no_repeat_ngram_size": settings.get("no_repeat_ngram_size", 0),
                "min_new_tokens": settings.get("min_new_tokens", 0),
                "bad_words": settings.get("bad_words_ids", []),
            }
            prompt = prompts[f"ids_{case[-1]}"].tolist()
            expected = outputs[case].tolist()
            steps = list(executable.steps(prompt, max_new_tokens=24, **known))
            assert [step.token for step in steps] == expected, (name, case)


def test_logits_may_be_narrower_than_f32():
    def step(token):
        return {"logits": attention_step(token)["logits"].cast("bf16")}

    wide, narrow = tiny(), tiny(step)
    settings = {"max_new_tokens": 8, "temperature": 1.0, "seed": 4}
    assert narrow.generate([3, 5], **settings) == stepped(narrow, [3, 5], **settings)
    assert len(narrow.beam_search([3, 5], beams=2, max_new_tokens=4)) == 1
    assert wide.generate([3, 5], max_new_tokens=1) == narrow.generate([3, 5], max_new_tokens=1)


def test_a_pace_takes_a_moment_and_no_more():
    pace = Pace(None)
    assert pace.tokens == 1
    sizes = []
    for _ in range(8):
        sizes.append(pace.tokens)
        pace.took(pace.tokens, time.perf_counter())
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 64]
    pace.took(1, time.perf_counter() - 10)
    assert pace.tokens == 1
    assert Pace(7).tokens == 7

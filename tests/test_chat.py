"""Conversations: what was read and said is never read again, and Ctrl-C loses nothing."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

import systolic as sy
from systolic.models.embedded import embedded_models
from systolic.runner.chat import chat_prompt, transcript
from systolic.runner.conversation import Conversation

# The end of a turn is a token that the model has, but does not end texts with.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}:\n{{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:\n{% endif %}"
)
HELLO = {"role": "user", "content": "Speak, what news?"}


@pytest.fixture(scope="module")
def plain():
    return sy.compile(sy.load("shakespeare"), capacity=256, chunk=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The embedded model as a checkpoint with a chat template."""
    target = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(embedded_models()["shakespeare"], target)
    settings = json.loads((target / "tokenizer_config.json").read_text())
    settings |= {"chat_template": TEMPLATE, "eos_token": "<|begin|>"}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target


@pytest.fixture(scope="module")
def templated(folder):
    return sy.compile(sy.load(folder), capacity=256, chunk=32)


def said(steps) -> str:
    return "".join(step.text for step in steps)


class Reads:
    """How many positions the session of a conversation has read."""

    def __init__(self, conversation: Conversation, monkeypatch) -> None:
        self.positions = 0
        rows = conversation._session._rows
        read = rows.run

        def run(tokens, **options):
            self.positions += sum(map(len, tokens.values()))
            return read(tokens, **options)

        monkeypatch.setattr(rows, "run", run)


def test_a_prompt_is_the_templates_text_and_nothing_else(templated):
    prompt = chat_prompt(templated, [HELLO])
    text = "<|begin|>USER:\nSpeak, what news?<|begin|>\nASSISTANT:\n"
    assert templated.tokenizer.decode_exactly(prompt.ids) == text == templated.model.chat_prompt([HELLO])
    assert prompt.ids.count(0) == 2  # each special token is one token; none was added
    assert prompt.stop_tokens == (0,)


def test_chat_is_generation_behind_the_prompt(templated):
    ids = chat_prompt(templated, [HELLO]).ids
    expected = templated.generate(ids, max_new_tokens=20)
    assert templated.chat([HELLO], max_new_tokens=20) == templated.text_behind(ids, expected)
    # the end of the turn ends the answer, and is no part of it
    short = templated.chat([HELLO], max_new_tokens=20, forced_tokens={6: 0})
    assert short == templated.text_behind(ids, expected[:6])


def test_without_a_template_a_transcript_is_continued(plain):
    messages = [
        {"role": "system", "content": "A play."},
        HELLO,
        {"role": "assistant", "content": " None."},
        HELLO,
    ]
    text = "System: A play.\nUser: Speak, what news?\nAssistant: None.\nUser: Speak, what news?\nAssistant:"
    assert transcript(messages) == text
    prompt = chat_prompt(plain, messages)
    assert plain.tokenizer.decode(prompt.ids) == text
    assert prompt.stop == ("\nUser:",)
    with pytest.raises(sy.SystolicError, match=r"a role .system, user, assistant. and a text"):
        transcript([{"role": "tool", "content": "x"}])
    with pytest.raises(sy.SystolicError, match="shakespeare has no chat template"):
        plain.model.chat_prompt(messages)
    with pytest.raises(sy.SystolicError, match="at least one message"):
        plain.chat([])


@pytest.mark.parametrize("ending", [{}, {"forced_tokens": {9: 0}}])
def test_the_next_turn_reads_only_what_is_new(templated, monkeypatch, ending):
    conversation = Conversation(templated, max_new_tokens=12, temperature=1.0, seed=3, **ending)
    first = said(conversation.say("Speak, what news?"))
    known = len(conversation._session.tokens)
    reads = Reads(conversation, monkeypatch)
    second = said(conversation.say("Say more."))
    prompt = list(conversation._prompt)
    assert templated.tokenizer.decode_exactly(prompt) == templated.model.chat_prompt(
        conversation.messages[:-1]
    )
    assert [message["content"] for message in conversation.messages[1::2]] == [first, second]
    answer = conversation._session.tokens[len(prompt) :]
    assert (
        templated.generate(prompt, max_new_tokens=12, temperature=1.0, seed=3, stop_tokens=[0], **ending)
        == answer
    )
    new = len(prompt) - known
    assert reads.positions <= new + 1 + len(answer)  # and the newest token, which had not been read


def test_what_was_said_keeps_its_tokens(templated, monkeypatch):
    """Letter by letter, as no tokenizer would write it."""
    letters = {at: templated.tokenizer.token_id(letter) for at, letter in enumerate("Thewords")}
    conversation = Conversation(templated, max_new_tokens=8, forced_tokens=letters)
    assert said(conversation.say("Speak, what news?")) == "Thewords"
    known = conversation._session.tokens
    canonical = chat_prompt(templated, conversation.messages).ids
    assert list(canonical[: len(known)]) != known
    conversation.change(forced_tokens={})
    reads = Reads(conversation, monkeypatch)
    said(conversation.say("Say more."))
    assert conversation._session.tokens[: len(known)] == known
    assert reads.positions <= len(conversation._prompt) - len(known) + 1 + 8


def test_leaving_an_answer_keeps_what_was_said(templated, monkeypatch):
    conversation = Conversation(templated, max_new_tokens=40)
    steps = conversation.say("Speak, what news?")
    pieces = [next(steps).text for _ in range(7)]
    steps.close()
    content = conversation.messages[-1]["content"]
    assert content.startswith("".join(pieces))
    whole = templated.chat([HELLO], max_new_tokens=40)
    reads = Reads(conversation, monkeypatch)
    assert content + said(conversation.go_on()) == whole + whole_behind(templated, whole, 7)
    assert reads.positions == 40  # the newest token, and each but the last of the new ones


def whole_behind(executable, whole: str, more: int) -> str:
    """What comes behind an answer of 40 tokens if 7 of 47 were said before."""
    return executable.chat([HELLO], max_new_tokens=40 + more)[len(whole) :]


@pytest.mark.parametrize("ending", [{}, {"forced_tokens": {9: 0}}])
def test_steering(templated, monkeypatch, ending):
    """The answer goes on as if the model had said it, also behind an end that it had come to."""
    conversation = Conversation(templated, max_new_tokens=12, **ending)
    first = said(conversation.say("Speak, what news?"))
    conversation.change(forced_tokens={})
    reads = Reads(conversation, monkeypatch)
    more = said(conversation.steer(" The king is dead"))
    assert conversation.messages[-1]["content"] == f"{first} The king is dead{more}"
    text = templated.model.chat_prompt([HELLO]) + first + " The king is dead"
    tokens = conversation._session.tokens[:-12]
    assert templated.tokenizer.decode_exactly(tokens) == text
    assert templated.generate(tokens, max_new_tokens=12) == conversation._session.tokens[-12:]
    assert reads.positions < 12 + 12


def test_steering_behind_a_stop_string(plain):
    conversation = Conversation(plain, max_new_tokens=60, stop="peace")
    first = said(conversation.say("Speak, what news?"))
    assert conversation._session.text.endswith("peace")
    assert "peace" not in first
    said(conversation.steer("war"))
    assert f"Assistant:{first}war" in conversation._session.text


def test_retry_edit_and_system(templated, monkeypatch):
    conversation = Conversation(templated, max_new_tokens=10, temperature=1.5, seed=1)
    first = said(conversation.say("Speak, what news?"))
    reads = Reads(conversation, monkeypatch)
    second = said(conversation.retry())
    assert second != first
    assert second == templated.chat([HELLO], max_new_tokens=10, temperature=1.5, seed=2)
    assert reads.positions <= 10  # of the prompt at most the last one
    third = said(conversation.edit("Farewell."))
    assert conversation.messages == [
        {"role": "user", "content": "Farewell."},
        {"role": "assistant", "content": third},
    ]
    conversation.set_system("Be brief.")
    conversation.change(temperature=0.0)
    fourth = said(conversation.edit("Speak, what news?"))
    assert fourth == templated.chat([{"role": "system", "content": "Be brief."}, HELLO], max_new_tokens=10)
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    for ask in (conversation.retry, conversation.go_on):
        with pytest.raises(sy.SystolicError):
            ask()


def test_what_has_no_room_leaves_the_conversation_as_it_was(templated):
    conversation = Conversation(templated, max_new_tokens=3)
    said(conversation.say("Speak"))
    before = conversation.messages
    with pytest.raises(sy.SystolicError, match="256"):
        conversation.say("word " * 400)
    assert conversation.messages == before
    with pytest.raises(sy.SystolicError, match="256"):
        conversation.edit("word " * 400)
    assert conversation.messages == before
    assert said(conversation.say("And now?"))


# ---- the terminal ----


@pytest.fixture
def talk(cli, monkeypatch):
    """``systolic chat`` with lines typed at it."""

    def run(*lines: str, arguments=("--backend", "numpy", "--max-new-tokens", 8)):
        typed = iter(lines)

        def read(prompt=""):
            line = next(typed, None)
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr("builtins.input", read)
        return cli("chat", *arguments)

    return run


def test_a_conversation_in_the_terminal(talk, tmp_path, folder):
    file = tmp_path / "talk.json"
    lines = (
        "Speak",
        "/retry",
        "/system Be brief.",
        "/edit Say on",
        "/steer Lo",
        "/go",
        "/history",
        f"/save {file}",
    )
    status, out, err = talk(
        *lines,
        "/set temperature 2",
        "/quit",
        "never said",
        arguments=(folder, "--seed", 5, "--max-new-tokens", 8),
    )
    assert status == 0, err
    messages = json.loads(file.read_text())
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "Say on"
    assert "Lo" in messages[2]["content"]
    assert "user: Say on" in out
    assert "never said" not in out
    assert "no chat template" not in err


def test_mistakes_in_the_terminal_are_said_and_it_goes_on(talk):
    wrong = (
        "/retry",
        "/go",
        "/nonsense",
        "/set colour red",
        "/set temperature hot",
        "/save",
        "/set top_k -1",
    )
    status, out, err = talk(*wrong, "/help", "/save /nowhere/at/all")
    assert status == 0
    assert err.count("systolic: error: ") == len(wrong) + 1
    assert "shakespeare has no chat template: it continues a transcript" in err
    assert "/steer TEXT" in out


def test_an_interrupt_keeps_what_was_said(talk, monkeypatch, tmp_path):
    say = Conversation.say

    def interrupted(self, text):
        for number, step in enumerate(say(self, text)):
            if number == 2:
                signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(Conversation, "say", interrupted)
    file = tmp_path / "talk.json"
    before = signal.getsignal(signal.SIGINT)
    status, out, _ = talk("Speak", f"/save {file}", "/go", "/history")
    assert status == 0
    assert signal.getsignal(signal.SIGINT) is before
    answer = json.loads(file.read_text())[1]["content"]
    assert answer
    assert f"assistant: {answer.strip()}" in out  # and more of it

"""Chat templates: the text that transformers makes of them, and what a template may not do."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

import systolic as sy
from systolic.models.chat_template import ChatTemplate, read_chat_template

FOLDER = Path(__file__).parent / "chat_templates"
RECORDED = json.loads((FOLDER / "cases.json").read_text())
HELLO = [{"role": "user", "content": "Hello"}]


def template_of(text: str, **tokens: str) -> ChatTemplate:
    return ChatTemplate("here", {"default": text}, tokens)


@pytest.mark.parametrize("style", sorted({case["template"] for case in RECORDED["cases"]}))
def test_texts_are_those_of_transformers(style):
    template = template_of((FOLDER / f"{style}.jinja").read_text(), **RECORDED["tokens"])
    for case in RECORDED["cases"]:
        if case["template"] != style:
            continue
        if "error" in case:
            with pytest.raises(sy.SystolicError, match=case["error"]):
                template.render(case["messages"], **case["variables"])
        else:
            assert template.render(case["messages"], **case["variables"]) == case["text"]


def test_the_date_is_todays():
    rendered = template_of("{{ strftime_now('%Y') }}").render(HELLO)
    assert abs(int(rendered) - datetime.now().year) <= 1


def write(folder: Path, **files) -> Path:
    for name, value in files.items():
        path = folder / name.replace("_json", ".json").replace("_jinja", ".jinja")
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_where_templates_and_special_tokens_are_found(tmp_path):
    assert read_chat_template(tmp_path) is None
    write(tmp_path, special_tokens_map_json={"bos_token": "<a>", "eos_token": {"content": "<e>"}})
    write(tmp_path, tokenizer_config_json={"bos_token": {"content": "<b>"}, "pad_token": None})
    assert read_chat_template(tmp_path) is None
    text = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    write(tmp_path, tokenizer_config_json={"bos_token": {"content": "<b>"}, "chat_template": text})
    found = read_chat_template(tmp_path)
    assert found is not None
    assert found.render(HELLO) == "<b>Hello<e>"
    write(tmp_path, chat_template_jinja="of the file: " + text)
    found = read_chat_template(tmp_path)
    assert found is not None
    assert found.render(HELLO) == "of the file: <b>Hello<e>"


def test_of_several_templates_the_one_for_tools_is_taken_with_tools(tmp_path):
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | tojson }}"},
    ]
    found = read_chat_template(write(tmp_path, tokenizer_config_json={"chat_template": named}))
    assert found is not None
    assert found.render(HELLO) == "plain"
    assert found.render(HELLO, tools=[{"name": "f"}]) == '[{"name": "f"}]'
    found = read_chat_template(write(tmp_path, tokenizer_config_json={"chat_template": named[1:]}))
    assert found is not None
    with pytest.raises(sy.SystolicError, match="no chat template is named default; there are tool_use"):
        found.render(HELLO)


@pytest.mark.parametrize("found", [5, [], ["text"], [{"name": "default"}]])
def test_what_is_no_template_is_said(tmp_path, found):
    write(tmp_path, tokenizer_config_json={"chat_template": found})
    with pytest.raises(sy.SystolicError, match=r"tokenizer_config\.json: chat_template must be a string"):
        read_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% if %}", "here: the chat template says: Expected an expression"),
        ("{{ messages[0].content + 1 }}", "here: the chat template says: can only concatenate"),
        ("{{ nothing.at.all }}", "here: the chat template says: 'nothing' is undefined"),
        ("{{ raise_exception('no\nthanks') }}", "refuses the conversation: no"),
        # the ways out of a sandbox
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "is not safely callable|unsafe"),
        ("{{ raise_exception.__globals__.os }}", "unsafe"),
        ("{{ dict.__base__.__subclasses__() }}", "no attribute '__base__'"),
        ("{{ namespace(__class__=1) }}", "may not set __class__ of a namespace"),
        ("{% set n = namespace() %}{% set n.__init__ = 1 %}", "may not set __init__ of a namespace"),
        ("{{ range(1000000000) | list }}", "Range too big"),
    ],
)
def test_errors_and_what_a_template_may_not_do(text, said):
    with pytest.raises(sy.SystolicError, match=said) as raised:
        template_of(text).render(HELLO)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("message", ["Hello", {"content": "Hello"}, {"role": 5}])
def test_messages_that_are_none(message):
    with pytest.raises(sy.SystolicError, match="a message must have a role and a content"):
        template_of("").render([message])


def test_only_plain_data_reaches_the_sandbox():
    with pytest.raises(sy.SystolicError, match="messages must be plain JSON"):
        template_of("").render([{"role": "user", "content": object()}])

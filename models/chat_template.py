"""Chat templates: how a checkpoint wants a conversation written, as Jinja in a sandbox.

A template gets ``messages``, ``tools``, ``documents``, ``add_generation_prompt`` and the special tokens by
name, as transformers gives them, so that the text is the same character for character.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..ir.errors import SystolicError
from .spec import Config, read_config

TEMPLATE_FILE = "chat_template.jinja"
DEFAULT, WITH_TOOLS = "default", "tool_use"  # names of templates, where there are several
Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatTemplate:
    """The templates of a checkpoint by name, and its special tokens by theirs (``bos_token`` …).

    ``source`` is the file that they come from.
    """

    source: str
    templates: Mapping[str, str]
    tokens: Mapping[str, str]

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text; with ``add_generation_prompt`` up to where the answer begins.

        ``variables`` are given to the template by name. Raises ``SystolicError`` for messages that are no
        JSON objects with a role, and with the template's own words for what it refuses.
        """
        given = {"messages": list(messages), "tools": tools, "documents": None, **self.tokens, **variables}
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise SystolicError(f"a message must have a role and a content, not be {message!r}")
        try:
            plain = json.loads(json.dumps(given))  # nothing but plain data gets into the sandbox
        except (TypeError, ValueError) as error:
            raise SystolicError(f"messages must be plain JSON: {error}") from None
        try:
            template = _compiled(self._chosen(tools is not None))
            return template.render(**plain, add_generation_prompt=add_generation_prompt)
        except SystolicError:
            raise
        except Exception as error:  # a template can raise anything
            words = " ".join(str(error).split()) or type(error).__name__
            raise SystolicError(f"{self.source}: the chat template says: {words}") from None

    def _chosen(self, has_tools: bool) -> str:
        if has_tools and WITH_TOOLS in self.templates:
            return self.templates[WITH_TOOLS]
        if DEFAULT not in self.templates:
            names = ", ".join(sorted(self.templates))
            raise SystolicError(f"{self.source}: no chat template is named default; there are {names}")
        return self.templates[DEFAULT]


def read_chat_template(directory: Path) -> ChatTemplate | None:
    """The chat template of a checkpoint, if it has one.

    ``chat_template.jinja`` comes before ``chat_template`` in ``tokenizer_config.json``.
    """
    settings, special = (_optional(directory / name) for name in _TOKEN_FILES)
    tokens = {**_special_tokens(special), **_special_tokens(settings)}
    file = directory / TEMPLATE_FILE
    if file.is_file():
        try:
            return ChatTemplate(str(file), {DEFAULT: file.read_text(encoding="utf-8")}, tokens)
        except UnicodeDecodeError:
            raise SystolicError(f"{file} is not UTF-8 text") from None
    found = None if settings is None else settings.values.get("chat_template")
    if settings is None or found is None:
        return None
    return ChatTemplate(settings.source, _named(settings.source, found), tokens)


_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def _optional(file: Path) -> Config | None:
    return read_config(file) if file.is_file() else None


def _named(source: str, found: Any) -> dict[str, str]:
    """One template, or a list of named ones."""
    named = {DEFAULT: found} if isinstance(found, str) else {}
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        named = {entry.get("name"): entry.get("template") for entry in found}
    if not named or not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise SystolicError(f"{source}: chat_template must be a string, or a list of name and template")
    return named


def _special_tokens(settings: Config | None) -> dict[str, str]:
    """The texts of special tokens by name; each is a string, or an object with its ``content``."""
    tokens = {}
    for name, value in ({} if settings is None else settings.values).items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


@lru_cache(16)
def _compiled(source: str) -> Any:
    """The template in a sandbox: it can call nothing but what is given here, and change nothing."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the model says, for training; here it is just its body."""

        tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Namespace(jinja2.utils.Namespace):
        """A namespace whose names cannot lead to Python's own."""

        def __init__(*given: Any, **named: Any) -> None:  # self may be a name in it
            self, *mappings = given
            values = dict(*mappings, **named)
            for name in values:
                _refuse_private(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": lambda *given, **named: dict(*given, **named),  # the type itself would have attributes
        "namespace": Namespace,
    }
    return environment.from_string(source)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SystolicError(f"a chat template may not set {name} of a namespace")


def _raise(message: str) -> None:
    raise SystolicError(f"the chat template refuses the conversation: {' '.join(str(message).split())}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model to read: without the escapes for HTML that Jinja's own filter makes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

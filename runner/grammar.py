"""Grammars that new text must fit, as masks over the next token: llguidance knows them, tokens are ours."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import SystolicError

if TYPE_CHECKING:
    from .executable import Executable
    from .tokens import Tokenizer

# Between the parts of JSON, or nothing: a model that may write any space can go on with spaces for ever.
JSON_SPACE = " "
# Where only one text can follow, the model still chooses its tokens: what a tokenizer makes of a part of a
# text is not always what it makes of it within the text.
_HEADER = '%llguidance {"no_forcing": true}\n'
_KEPT = 64  # grammars that stay compiled
_END = b"<end>"  # a token of llguidance's that no model has: where a text may end, we say which tokens end it


@dataclass(frozen=True)
class Grammar:
    """What a text must fit: ``kind`` is json_schema, regex or grammar (in Lark's form)."""

    kind: str
    text: str

    @classmethod
    def of_settings(
        cls, json_schema: Mapping[str, Any] | str | None, regex: str | None, grammar: str | None
    ) -> Grammar | None:
        """The one of three settings that is given, if one is; ``SystolicError`` if several are."""
        settings = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        given = {kind: value for kind, value in settings.items() if value is not None}
        if len(given) > 1:
            raise SystolicError(f"{' and '.join(given)} exclude each other; give one of them")
        for kind, value in given.items():
            return cls(kind, _schema_text(value) if kind == "json_schema" else _text(kind, value))
        return None


def _schema_text(schema: Any) -> str:
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(parsed, Mapping):
            raise ValueError("it is no object")
        return json.dumps(parsed)
    except (TypeError, ValueError) as error:
        raise SystolicError(f"json_schema is no JSON schema: {error}") from None


def _text(kind: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise SystolicError(f"{kind} must be a string that is not empty, not {value!r}")
    return value


class Grammars:
    """The grammars of one vocabulary: of ``executable``, whose tokenizer says what its tokens are."""

    def __init__(self, executable: Executable) -> None:
        if executable.tokenizer is None:
            raise SystolicError(
                f"{executable.model.name} has no tokenizer, so its text cannot be constrained"
            )
        self._library = _llguidance()
        self._count = executable.logit_count
        wrapped = self._library.TokenizerWrapper(_Tokens(executable.tokenizer, self._count))
        self._tokenizer = self._library.LLTokenizer(wrapped)
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()  # used last is last
        self._changing = threading.Lock()

    def constraint(self, grammar: Grammar, ends: Sequence[int]) -> Constraint:
        """The constraint of a text that ``ends`` can end; ``SystolicError`` for a grammar that is none."""
        with self._changing:
            compiled = self._compiled.pop(grammar, None) or self._compile(grammar)
            self._compiled[grammar] = compiled
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return Constraint(compiled.deep_copy(), grammar.kind, self._count, ends)

    def _compile(self, grammar: Grammar) -> Any:
        matcher = self._library.LLMatcher(self._tokenizer, self._source(grammar), log_level=0)
        if matcher.is_error():
            raise SystolicError(f"{grammar.kind} cannot be used: {_complaint(grammar, matcher.get_error())}")
        return matcher

    def _source(self, grammar: Grammar) -> str:
        """The grammar in llguidance's form of Lark."""
        if grammar.kind == "json_schema":
            schema = {"x-guidance": {"whitespace_pattern": JSON_SPACE}, **json.loads(grammar.text)}
            return f"{_HEADER}start: %json {json.dumps(schema)}"
        if grammar.kind == "regex":
            made = json.loads(self._library.LLMatcher.grammar_from_regex(grammar.text))
            return _HEADER + made["grammars"][0]["lark_grammar"]
        return grammar.text if grammar.text.startswith("%llguidance") else _HEADER + grammar.text


def _complaint(grammar: Grammar, error: str) -> str:
    """llguidance's words in one sentence: with the line where the user wrote lines, without the header."""
    found = re.match(r"at (\d+)\(\d+\): (.*?)(?:\n +\d+ \|.*)?$", error, re.DOTALL)
    words = " ".join((found[2] if found else error).split())
    if found is None or grammar.kind != "grammar" or grammar.text.startswith("%llguidance"):
        return words
    return f"line {int(found[1]) - 1}: {words}"


class Constraint:
    """Where one text is in its grammar. The text may be set back, as one that is edited is."""

    def __init__(self, matcher: Any, kind: str, count: int, ends: Sequence[int]) -> None:
        self._matcher = matcher
        self._kind = kind
        self._count = count
        self._ends = [end for end in ends if end < count]
        self._read: list[int] = []

    def allowed(self, text: Sequence[int]) -> np.ndarray:
        """Which tokens can come behind the new ``text``: bool[V]."""
        self._follow(text)
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(packed, count=self._count, bitorder="little").astype(bool)
        allowed[self._ends] = self._matcher.is_accepting()
        if not allowed.any():
            raise SystolicError(f"no token can come at new token {len(text)} that the {self._kind} allows")
        return allowed

    def is_complete(self, text: Sequence[int]) -> bool:
        """Whether the text fits as it is, and nothing can follow, or nothing could end it later."""
        if text and text[-1] in self._ends:
            return True
        self._follow(text)
        return self._matcher.is_accepting() and (self._matcher.is_stopped() or not self._ends)

    def _follow(self, text: Sequence[int]) -> None:
        pairs = zip(self._read, text, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self._read), len(text)))
        if same < len(self._read):
            self._matcher.rollback(len(self._read) - same)
            self._read = self._read[:same]
        for token in text[same:]:
            if self._matcher.try_consume_tokens([token]) != 1:
                at = len(self._read)
                raise SystolicError(f"token {token}, new token {at}, is not one that the {self._kind} allows")
            self._read.append(token)


class _Tokens:
    """A tokenizer as llguidance wants it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        vocabulary = tokenizer.vocabulary
        self._tokenizer = tokenizer
        self.tokens = [*(vocabulary.bytes_of(token) for token in range(count)), _END]
        self.eos_token_id = count
        self.special_token_ids = [*(token for token in vocabulary.special_ids if token < count), count]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode_exactly(text if isinstance(text, str) else text.decode())


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ModuleNotFoundError:
        raise SystolicError(
            "json_schema, regex and grammar need llguidance: pip install 'systolic[constraints]'"
        ) from None
    return llguidance

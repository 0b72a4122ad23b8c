"""What each token stands for as bytes: a token may be a part of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how byte fallback writes a byte
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # that byte-level BPE writes as they are
SPACE = "\u2581"  # how SentencePiece writes a space


class Vocabulary:
    """The tokens of a tokenizer: ``tokens[id]`` as bytes, and the ids of special ones.

    An id that no token has is empty.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        described = json.loads(tokenizer.to_str())
        added = {entry["id"]: entry for entry in described["added_tokens"]}
        to_bytes = _reading(described.get("decoder"))
        ids = tokenizer.get_vocab(with_added_tokens=True)
        self.tokens = [b""] * (max(ids.values(), default=-1) + 1)
        for text, number in ids.items():
            self.tokens[number] = text.encode() if number in added else to_bytes(text)
        self.special_ids = frozenset(number for number, entry in added.items() if entry["special"])

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; empty for an id that there is no token for."""
        return self.tokens[token] if token < len(self.tokens) else b""


def _reading(decoder: Mapping[str, Any] | None) -> Any:
    """How the texts of tokens are read, by what undoes them."""
    kinds = {part["type"]: part for part in _parts(decoder)}
    if "ByteLevel" in kinds:
        table = _byte_level()
        return lambda text: b"".join(table.get(character, character.encode()) for character in text)
    if "WordPiece" in kinds:
        prefix = kinds["WordPiece"]["prefix"]
        return lambda text: (
            text.removeprefix(prefix).encode() if text.startswith(prefix) else f" {text}".encode()
        )
    falls_back, has_spaces = "ByteFallback" in kinds, not kinds.keys().isdisjoint(("Metaspace", "Replace"))

    def read(text: str) -> bytes:
        found = _BYTE.fullmatch(text) if falls_back else None
        if found:
            return bytes([int(found[1], 16)])
        return (text.replace(SPACE, " ") if has_spaces else text).encode()

    return read


def _parts(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is not None:
        yield decoder
        for part in decoder.get("decoders", ()):
            yield from _parts(part)


def _byte_level() -> dict[str, bytes]:
    """The characters of byte-level BPE: bytes that cannot be seen are written as U+0100, U+0101 …"""
    hidden = [byte for byte in range(256) if byte not in _VISIBLE]
    characters = {chr(byte): bytes([byte]) for byte in _VISIBLE}
    return characters | {chr(256 + number): bytes([byte]) for number, byte in enumerate(hidden)}

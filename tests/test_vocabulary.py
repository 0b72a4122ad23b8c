"""Tokens as bytes: joined, they are the text."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models

from systolic.models.embedded import embedded_models
from systolic.runner.tokens import Tokenizer
from systolic.runner.vocabulary import Vocabulary

TEXT = "Once upon a time, naïve 雨 🙂\n\n  two  spaces\tand\x00"


def check(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    joined = b"".join(
        tokenizer.vocabulary.bytes_of(token) for token in ids if token not in tokenizer.vocabulary.special_ids
    )
    assert joined.decode().lstrip(" ") == tokenizer.decode(ids).lstrip(" ")


def test_byte_level():
    check(Tokenizer(embedded_models()["shakespeare"] / "tokenizer.json"))


def test_byte_fallback(shared):
    check(Tokenizer(shared / "real" / "stories260K" / "tokenizer.json"))


def vocabulary_of(vocabulary: dict[str, int], decoder) -> Vocabulary:
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.decoder = decoder
    made.add_special_tokens(["[UNK]"])
    return Vocabulary(made)


def test_word_pieces_and_what_is_not_there():
    made = vocabulary_of({"[UNK]": 0, "play": 2, "##ing": 3}, decoders.WordPiece())
    assert [made.bytes_of(token) for token in range(5)] == [b"[UNK]", b"", b" play", b"ing", b""]
    assert made.special_ids == {0}
    assert vocabulary_of({"a": 0}, None).bytes_of(0) == b"a"

"""Text to token ids and back, also while the tokens are still arriving."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from ..ir.errors import SystolicError
from .vocabulary import Vocabulary

REPLACEMENT = "\ufffd"  # what decoding puts where bytes do not (yet) make a character


class Tokenizer:
    """A ``tokenizer.json``, run by the tokenizers library.

    ``add_bos`` is what ``tokenizer_config.json`` says: True and False overrule the file's own
    template, None leaves the decision to it. Raises ``SystolicError`` for an unreadable file.
    """

    def __init__(self, path: str | Path, *, add_bos: bool | None = None, bos_id: int | None = None) -> None:
        import tokenizers  # token ids alone need none of it

        self.path = Path(path)
        self.add_bos = add_bos
        self.bos_id = bos_id
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise SystolicError(f"{path} is not a readable tokenizer.json: {error}") from None
        # Files saved after training often keep both, which would cut or fill up prompts silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, special tokens as the tokenizer's template adds them."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise SystolicError("the text contains bytes that are not UTF-8") from None
        ids = self._tokenizer.encode(text).ids
        starts = bool(ids) and ids[0] == self.bos_id
        if self.add_bos and self.bos_id is not None and not starts:
            return [self.bos_id, *ids]
        if self.add_bos is False and starts:
            plain = self._tokenizer.encode(text, add_special_tokens=False).ids
            return ids if plain[:1] == ids[:1] else ids[1:]
        return ids

    def encode_exactly(self, text: str) -> list[int]:
        """The ids of a text in which special tokens are written out; none is added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text, if there is such a token."""
        return self._tokenizer.token_to_id(token)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """All tokens as bytes."""
        return Vocabulary(self._tokenizer)

    def decode_exactly(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` with special tokens written out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without special tokens; bytes that make no character become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


class TextStream:
    """The text of tokens that arrive one by one, in pieces that never end inside a character.

    A piece is what a token adds to the text so far, so spaces at word starts come out right behind a
    prompt. Only the tokens of the piece before are decoded again, not the whole text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt)
        self._settled = len(self._window)  # how many ids of the window belong to text already given
        self._given = tokenizer.decode(self._window)

    def push(self, token: int) -> str:
        """What the token adds to the text; empty while a character is incomplete."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        return "" if text.endswith(REPLACEMENT) else self._give(text)

    def finish(self) -> str:
        """What was held back, when no more tokens follow."""
        return self._give(self._tokenizer.decode(self._window))

    def whole(self, tokens: Iterable[int]) -> str:
        """What all of these tokens add, when no more follow."""
        return "".join([*map(self.push, tokens), self.finish()])

    def _give(self, text: str) -> str:
        piece = text[_common_length(self._given, text) :]
        if piece:
            self._window = self._window[self._settled :]
            self._settled = len(self._window)
            self._given = self._tokenizer.decode(self._window)
        return piece


def _common_length(left: str, right: str) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


class StopStrings:
    """Lets text through until a stop string is complete, and never shows a part of one."""

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string has ended it.

        Reads character by character: the result does not depend on how the text was cut into pieces.
        """
        shown = ""
        for character in text:
            self._held += character
            found = next((stop for stop in self._stops if self._held.endswith(stop)), None)
            if found is not None:
                shown += self._held[: -len(found)]
                self._held = ""
                return shown, True
            keep = self._possible_start()
            shown += self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
        return shown, False

    def finish(self) -> str:
        """The held back beginning of a stop string that never came."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that could begin a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

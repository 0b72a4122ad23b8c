"""Stop strings as an automaton over tokens, so that the decode loop can end a row itself.

The states are what a text may end in that a stop string begins with; a token moves from one to another by
its bytes. The loop only ends its rows by it: what is shown, and whether a text is over, is decided from
the text on the host, so a tokenizer whose tokens change each other's bytes costs a call and no token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .tokens import Tokenizer

MOST_STATES = 64  # a table of states × tokens beyond this costs more than the calls that it saves


def stop_table(tokenizer: Tokenizer, stops: Sequence[str], vocabulary: int) -> np.ndarray | None:
    """i32[states, vocabulary]: the state behind each token; the last state means that a stop is complete.

    The number of states is a power of two, so that few numbers have a program. None where there are too
    many.
    """
    known = tokenizer.vocabulary
    pieces = [b"" if token in known.special_ids else piece for token, piece in enumerate(known.tokens)]
    steps = _byte_steps([stop.encode() for stop in stops])
    if len(steps) > MOST_STATES:
        return None
    lengths = np.array([len(piece) for piece in pieces], np.int32)
    joined = np.zeros((len(pieces), max(1, int(lengths.max(initial=1)))), np.uint8)
    for token, piece in enumerate(pieces):
        joined[token, : len(piece)] = np.frombuffer(piece, np.uint8)
    table = np.tile(np.arange(len(steps), dtype=np.int32)[:, None], (1, vocabulary))
    lengths = lengths[:vocabulary]
    for at in range(joined.shape[1]):
        moving = np.nonzero(lengths > at)[0]
        table[:, moving] = steps[table[:, moving], joined[moving, at]]
    return table


def _byte_steps(stops: Sequence[bytes]) -> np.ndarray:
    """i32[states, 256]: the automaton over bytes (Aho and Corasick, 1975). State 0 is the start; the last
    one is a complete stop, which nothing leaves."""
    prefixes = sorted({stop[:n] for stop in stops for n in range(len(stop))}, key=len)
    count = 1 << len(prefixes).bit_length()
    index = {prefix: state for state, prefix in enumerate(prefixes)}
    steps = np.zeros((count, 256), np.int32)
    steps[len(prefixes) :] = count - 1
    for prefix, state in index.items():
        for byte in range(256):
            text = prefix + bytes([byte])
            if any(text.endswith(stop) for stop in stops):
                steps[state, byte] = count - 1
            else:
                steps[state, byte] = next(index[text[i:]] for i in range(len(text) + 1) if text[i:] in index)
    return steps


def walk(table: np.ndarray, state: int, tokens: Sequence[int]) -> int:
    """The state behind more tokens; a complete stop begins anew."""
    for token in tokens:
        state = int(table[state, token])
        state = 0 if state == len(table) - 1 else state
    return state

"""Random numbers from counters, in integer ops: the same on every backend, and nothing to carry along.

Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) turns a
key and a counter, two words each, into two random words. A row's key for one step is made from (seed,
stream, step); the counters below it are the token and what the numbers are for.
"""

from __future__ import annotations

from ...compiler.language import (
    arange,
    bitwise_or,
    bitwise_xor,
    concatenate,
    log,
    log1p,
    minimum,
    shift_left,
    shift_right,
)
from ...compiler.stream import Stream

Words = tuple[Stream, Stream]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_ROUNDS_OF_FOUR = 5
TO_UNIT = 2.0**-32
BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1


def threefry(key: Words, counter: Words) -> Words:
    """Two random words u32 for each counter."""
    keys = (*key, bitwise_xor(bitwise_xor(key[0], key[1]), _PARITY))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for turn in range(_ROUNDS_OF_FOUR):
        for bits in _ROTATIONS[turn % 2]:
            x = x + y
            y = bitwise_xor(bitwise_or(shift_left(y, bits), shift_right(y, 32 - bits)), x)
        x = x + keys[(turn + 1) % 3]
        y = y + keys[(turn + 2) % 3] + (turn + 1)
    return x, y


def unit(word: Stream) -> Stream:
    """A word as a float32 above 0 and below 1; small ones are exact to 2**-33."""
    return minimum((word.cast("f32") + 0.5) * TO_UNIT, BELOW_ONE)


def uniform(key: Words, purpose: int) -> Stream:
    """One number above 0 and below 1."""
    zero = (key[0] * 0).cast("u32")
    return unit(threefry(key, (zero, zero + purpose))[0])


def gumbel(key: Words, count: int, purpose: int) -> Stream:
    """f32[count]: independent numbers of the standard Gumbel distribution.

    The largest of ``log p[i] + gumbel[i]`` is at i with probability p[i]. Written as the logarithm of an
    exponential variate near zero, where float32 is finest, so that rare tokens keep their frequency.
    """
    half = (count + 1) // 2
    index = arange(half).cast("u32")
    words = concatenate(threefry(key, (index, index * 0 + purpose)))[:count]
    return -log(-log1p(-unit(words)))

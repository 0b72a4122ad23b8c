"""How many positions of a prompt are read at once: which sizes get a program, and which of them read a text.

Both follow from predicted seconds: what one call that reads so many positions takes behind so many others.
They come from measured products on a CPU (``backends.contractions.chunk_seconds``), from the cost model of a
target (``cost.prediction.chunk_seconds_on``), or, where nothing is known, from ``nominal_seconds``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

ChunkSeconds = Callable[[int, int], float]  # positions of a chunk, positions that were read before

LEAST, MOST = 32, 1024  # of the largest size: room to check guesses, and no more than that ever pays
ENOUGH = 1.02  # times the least seconds per position: a larger chunk takes memory and gains nothing
SPARED = 1.1  # times as long as with a program for every power of two: a program less to compile
SECONDS_PER_PROGRAM = 0.01  # of the 0.03 that a program takes to load: most processes read several prompts
_NOMINAL_ROWS, _NOMINAL_READ = 64, 0.01


@dataclass(frozen=True)
class Chunk:
    """A program that reads ``size`` positions of each row, and how long one call is predicted to take."""

    size: int
    seconds: float


def choose_chunks(seconds: ChunkSeconds, most: int, size: int | None = None) -> tuple[Chunk, ...]:
    """The chunks that prompts are read in, the smallest first: 1, which also decodes, and some powers of two.

    The largest is ``size`` if it is given. Otherwise it is the smallest, of at most ``most``, whose positions
    take no more than 1.02 times what they take in the best; all are compared behind the same mean number of
    positions. A smaller one is left out where others read as many in at most 1.1 times its time.
    """
    largest = _largest(seconds, most) if size is None else size
    every = [Chunk(each, seconds(each, 0)) for each in _powers_of_two(largest)]
    kept = list(every)
    for one in every[-2:0:-1]:
        others = [chunk for chunk in kept if chunk is not one]
        left_out = [chunk for chunk in every if chunk not in others]
        if all(predicted_seconds(cut_prompt(c.size, others, 0.0)) <= SPARED * c.seconds for c in left_out):
            kept = others
    return tuple(kept)


def cut_prompt(
    length: int, chunks: Sequence[Chunk], seconds_per_program: float = SECONDS_PER_PROGRAM
) -> list[Chunk]:
    """The chunks that read ``length`` positions soonest: as many of the largest as there are whole ones, and
    for the rest one size or two; the last may be longer than what is left for it.

    ``seconds_per_program`` is charged for each size that is used, so that a second one must be worth it.
    """
    largest = max(chunks, key=lambda chunk: chunk.size)
    whole, rest = divmod(length, largest.size)
    first = [largest] * whole

    def cost(tail: list[Chunk]) -> tuple[float, int]:
        used = {chunk.size for chunk in (*first, *tail)}
        return predicted_seconds(tail) + seconds_per_program * len(used), len(tail)

    return [*first, *min(_tails(rest, chunks), key=cost)]


def predicted_seconds(chunks: Sequence[Chunk]) -> float:
    """What reading these chunks takes."""
    return sum(chunk.seconds for chunk in chunks)


def _tails(length: int, chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Ways to read ``length`` positions in chunks of one size, or of two: the larger ones first."""
    if not length:
        yield []
        return
    for one in chunks:
        count, rest = divmod(length, one.size)
        yield [one] * (count + bool(rest))
        if count and rest:
            smaller = (chunk for chunk in chunks if chunk.size < one.size)
            yield from ([one] * count + [chunk] * -(-rest // chunk.size) for chunk in smaller)


def _largest(seconds: ChunkSeconds, most: int) -> int:
    sizes = [size for size in _powers_of_two(most) if size >= min(LEAST, most)]
    each = {size: seconds(size, (most - size) // 2) / size for size in sizes}
    least = min(each.values())
    return min(size for size in sizes if each[size] <= ENOUGH * least)


def _powers_of_two(largest: int) -> list[int]:
    """1, 2, 4 … below ``largest``, and ``largest``."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest]


def nominal_seconds(rows: int) -> ChunkSeconds:
    """Those of a machine of which nothing is known: reading the weights takes 10 ms, and so does multiplying
    64 vectors with them."""

    def seconds(size: int, behind: int) -> float:
        return _NOMINAL_READ * (1 + rows * size / _NOMINAL_ROWS)

    return seconds

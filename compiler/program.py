"""What runs: a graph without time, and the states that it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.graph import Graph
from ..ir.time import Access
from ..ir.types import TensorType

STATE_PREFIX = "state."
TRANSPOSED = ".transposed"  # what a parameter that is kept so is called behind its name in files
SAMPLING = "sampling."  # what inputs, states and streams of a program that chooses tokens are called by
STRATEGIES = ("auto", "sources", "tokens")  # how states can be chosen
CHOICE = "adapter"  # the input that chooses weights: i32[], 0 for them as they are
NO_TOKEN = -3  # where a row had no step


@dataclass(frozen=True)
class State:
    """One stream that is kept from step to step, and why.

    ``kind`` is one of

    - ``append``: one value per position, [rows, …, capacity, …]: slots stand before the last axis
    - ``ring``: the last values, [rows, …, slots, …], slot = position modulo slots
    - ``tail``: the last values of a delayed stream, oldest first, [rows, steps, …]
    - ``carry``: the newest value of a feedback, [rows, …]
    - ``constant``: what a finished clock left behind, [rows, …]; one value for each of its positions
      is kept like ``append``

    All states start as zeros: what a row reads before it has written follows from its offset, so a
    row is begun anew by giving it offset 0. ``bytes_per_token`` is what each further position adds.
    """

    name: str
    kind: str
    type: TensorType
    value: TensorType
    bytes_per_token: int
    access: Access
    reason: str

    @property
    def bytes(self) -> int:
        """Bytes of the whole buffer."""
        return self.type.bytes


@dataclass(frozen=True)
class Program:
    """A graph whose edges all read *now*, for fixed numbers of rows, positions and slots.

    Its inputs are, in this order, the model's inputs ``[rows, chunk, …]``, ``offset`` i32[rows]
    (positions already seen), ``length`` i32[rows] (how many of the chunk's positions are real; the
    rest is padding that never becomes visible), one ``length.CLOCK`` i32[rows] for each finished
    clock, and one ``state.NAME`` for each state. Its outputs are the model's outputs
    ``[rows, positions, …]`` (``positions`` is 1 where only each row's last real position is wanted)
    and then ``state.NAME`` for each state that it updates: such an input may be overwritten.
    A program that runs a source clock yields ``constant`` states and takes none.
    """

    name: str
    graph: Graph
    states: tuple[State, ...]
    rows: int
    chunk: int
    capacity: int

    @property
    def donated(self) -> tuple[str, ...]:
        """Names of the states that come back updated under the same name."""
        signature = self.graph.signature
        inputs = {port.name for port in signature.inputs}
        outputs = (port.name for port in signature.outputs)
        return tuple(name for name in outputs if name in inputs and name.startswith(STATE_PREFIX))

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the outputs that are no states."""
        outputs = (port.name for port in self.graph.signature.outputs)
        return tuple(name for name in outputs if not name.startswith(STATE_PREFIX))

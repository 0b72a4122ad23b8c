"""TPU v1's published table beside what this model says: python -m benchmarks.tpu_v1

Jouppi et al., In-Datacenter Performance Analysis of a Tensor Processing Unit, ISCA 2017: tables 1 and 3. The
paper gives weights, batch and operations per weight byte of six applications, not their layers, so a tile of
weights is what is modelled: 256 × 256 bytes come from weight memory, are shifted into the array, and B rows
pass. What the matrix unit waits for (dependences, the host) is no part of it; shares are of matrix time.
"""

from __future__ import annotations

from dataclasses import dataclass

from systolic.compiler.cost.analytic import interval
from systolic.compiler.cost.schedule import main_memory
from systolic.compiler.cost.targets import load_target


@dataclass(frozen=True)
class Published:
    """Table 1 (``weights`` in millions, ``rows`` that pass a tile: operations per weight byte) and table 3
    (percent of all cycles; teraoperations per second)."""

    weights: float
    rows: int
    active: float
    useful: float
    stall: float
    shift: float
    other: float
    tera: float

    def of_matrix_time(self, percent: float) -> float:
        """A share (0 to 1) of the cycles that are not ``other``."""
        return percent / (100 - self.other)

    @property
    def filled(self) -> float:
        """The share of an active array that holds useful weights."""
        return self.useful / self.active


PUBLISHED = {
    "MLP0": Published(20, 200, 12.7, 12.5, 53.9, 15.9, 17.5, 12.3),
    "MLP1": Published(5, 168, 10.6, 9.4, 44.2, 13.4, 31.9, 9.7),
    "LSTM0": Published(52, 64, 8.2, 8.2, 58.1, 15.8, 17.9, 3.7),
    "LSTM1": Published(34, 96, 10.5, 6.3, 62.1, 17.1, 10.3, 2.8),
    "CNN0": Published(8, 2888, 78.2, 78.2, 0.0, 0.0, 21.8, 86.0),
    "CNN1": Published(100, 1750, 46.2, 22.5, 28.1, 7.0, 18.7, 14.1),
}
# Rows of 16 bits pass at half the speed (section 2). The paper does not say who has them; of the LSTMs, its
# own useful multiply-adds are twice its operations per second, which only cycles at half the speed explain.
CYCLES_PER_ROW = {"LSTM0": 2, "LSTM1": 2}
FULLY_CONNECTED_ROWS = 32  # CNN1 has four layers with so many operations per weight byte (section 4)
# How often their weights come for one batch: read once, its 100M cannot take the published share of stalls;
# read twice they take it, as if a batch passed in two halves. The paper does not say.
FULLY_CONNECTED_READS = 2


@dataclass(frozen=True)
class Modelled:
    """Shares of matrix time, and teraoperations per second if there were no other time."""

    active: float
    stall: float
    shift: float
    tera: float


def model(name: str) -> Modelled:
    """One application on the target tpu-v1."""
    app = PUBLISHED[name]
    if name == "CNN1":
        return _mixed(app)
    active, stall, shift = tile_cycles(app.rows * CYCLES_PER_ROW.get(name, 1))
    total = active + stall + shift
    return Modelled(active / total, stall / total, shift / total, _tera(app.rows * app.filled, total))


def tile_cycles(wave: float) -> tuple[float, float, float]:
    """(active, stall, shift) cycles of one tile in a long row of them.

    A tile lasts as long as its wave, its shift or its way from memory, whichever is longest. It can be
    shifted in as soon as it has come: what the wave before does not cover of that is seen, and the rest is
    a stall.
    """
    target = load_target("tpu-v1")
    arrays = target.arrays
    assert arrays is not None
    fetch = arrays.rows * arrays.columns / main_memory(target).bytes_per_cycle
    idle = max(fetch, float(interval(wave, arrays))) - wave
    shift = min(arrays.rows, idle)
    return wave, idle - shift, shift


def _mixed(app: Published) -> Modelled:
    """CNN1, if nearly all weights are in its fully connected layers, and nearly all work is not; where
    features are shallow, not all of an array holds useful weights: ``filled``, as published."""
    cells = 256 * 256
    tiles = app.weights * 1e6 / cells
    reads = tiles * FULLY_CONNECTED_READS
    rows = FULLY_CONNECTED_ROWS / FULLY_CONNECTED_READS
    active, stall, shift = (reads * cycles for cycles in tile_cycles(rows))
    work = app.weights * 1e6 * (app.rows - FULLY_CONNECTED_ROWS)
    active += work / (cells * app.filled)
    total = active + stall + shift
    return Modelled(active / total, stall / total, shift / total, _tera(app.rows * tiles, total))


def _tera(rows: float, cycles: float) -> float:
    """Teraoperations per second of so many rows on a full array."""
    target = load_target("tpu-v1")
    arrays = target.arrays
    assert arrays is not None
    assert arrays.clock_hz is not None
    return 2 * arrays.rows * arrays.columns * rows / cycles * arrays.clock_hz * 1e-12


def main() -> None:
    """Prints the table."""
    print("              active            weight stall      weight shift      teraoperations per second")
    print("              paper   model     paper   model     paper   model     paper   model   · (1 - other)")
    for name, app in PUBLISHED.items():
        found = model(name)
        pairs = [
            (app.of_matrix_time(getattr(app, x)), getattr(found, x)) for x in ("active", "stall", "shift")
        ]
        shares = "".join(f"{paper:7.1%} {ours:7.1%}   " for paper, ours in pairs)
        busy = 1 - app.other / 100
        print(f"{name:12}{shares}  {app.tera:5.1f} {found.tera:7.1f} {found.tera * busy:13.1f}")


if __name__ == "__main__":
    main()

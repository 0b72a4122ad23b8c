"""systolic targets: the machines that costs can be predicted for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ...ir.errors import SystolicError
from .arguments import Json
from .table import aligned

if TYPE_CHECKING:
    from ...compiler.cost import Target


def targets(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine; print it as a TOML target.")
    ] = False,
    platform: Annotated[
        str, typer.Option(metavar="cpu|gpu", help="--calibrate: the CPU with NumPy, or a GPU with jax.")
    ] = "cpu",
    forms: Annotated[
        bool,
        typer.Option(
            "--forms",
            help="Show in which forms products run fastest on this CPU; with --calibrate measure that for "
            "some minutes, and keep it for all programs from then on.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Lists the targets; --json gives every figure with its source."""
    from ...compiler.cost import load_target, preset_names

    if forms:
        from .product_forms import show_forms

        if platform != "cpu":
            raise SystolicError(f"--forms is about products on a CPU, not on --platform {platform}")
        show_forms(calibrate=calibrate, as_json=as_json)
        return
    if calibrate:
        measured = _measured(platform)
        print(json.dumps(measured.to_json(), indent=1) if as_json else measured.to_toml(), end="")
        return
    found = [load_target(name) for name in preset_names()]
    if as_json:
        print(json.dumps({"targets": [target.to_json() for target in found]}, indent=1))
        return
    columns = ("name", "arrays", "clock", "peak", "memory", "on chip", "description")
    print(aligned([columns, *map(_row, found)]))


def _measured(platform: str) -> Target:
    if platform == "cpu":
        from ...compiler.cost.calibrate import measured_cpu

        return measured_cpu()
    from ...backends.device_rates import measured_device  # loads jax

    return measured_device(platform)


def _row(target: Target) -> tuple[str, ...]:
    arrays, memory = target.arrays, target.memory
    clock = arrays.clock_hz if arrays else None
    bandwidth = memory.hbm_bytes_per_second
    return (
        target.name,
        f"{arrays.count} × {arrays.rows}×{arrays.columns} {arrays.dataflow}" if arrays else "-",
        f"{clock / 1e9:.2f} GHz" if clock else "-",
        ", ".join(f"{rate / 1e12:,.1f} T {dtype}" for dtype, rate in target.peak.items()) or "-",
        f"{bandwidth / 1e9:,.0f} GB/s" if bandwidth else "ideal",
        f"{memory.on_chip_bytes / 2**20:,.4g} MiB",
        target.description,
    )

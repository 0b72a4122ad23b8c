"""A process of its own that compiles StableHLO with libtpu: ``python -m systolic.backends.tpu_process DIR``.

libtpu reads its settings when it loads, holds one lock for the whole machine, and may abort, so nothing else
shares a process with it. DIR/request.json names the topology and the files; each FILE.mlir becomes FILE.hlo
(optimised, scheduled, with TPU layouts) and FILE.json (memory, XLA's own costs, seconds of compiling).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from jax.experimental import topologies
from jax.extend.backend import get_compile_options
from jax.extend.mlir import ir
from jax.interpreters import mlir
from jaxlib.xla_client import DeviceList

_MEMORY = ("argument", "output", "alias", "temp", "generated_code")


def main(folder: Path) -> None:
    """Compiles what DIR/request.json asks for, for one device of its topology."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    chip = {} if request["chip"] == "default" else {"chip_config_name": request["chip"]}
    found = topologies.get_topology_desc(platform="tpu", topology_name=request["topology"], **chip)
    devices = found.devices[:1]
    for name in request["programs"]:
        started = time.perf_counter()
        executable = _compile(devices, (folder / f"{name}.mlir").read_text(encoding="utf-8"))
        seconds = time.perf_counter() - started
        (folder / f"{name}.hlo").write_text(executable.hlo_modules()[0].to_string(), encoding="utf-8")
        (folder / f"{name}.json").write_text(json.dumps(_figures(executable, seconds)), encoding="utf-8")


def _compile(devices: Any, text: str) -> Any:
    options = get_compile_options(num_replicas=1, num_partitions=1, device_assignment=np.array([devices]))
    with mlir.make_ir_context():
        return devices[0].client.compile(ir.Module.parse(text), DeviceList(tuple(devices)), options)


def _figures(executable: Any, seconds: float) -> dict[str, Any]:
    memory, costs = executable.get_compiled_memory_stats(), executable.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    return {
        "compile_seconds": seconds,
        "memory": {f"{kind}_bytes": getattr(memory, f"{kind}_size_in_bytes") for kind in _MEMORY},
        "optimal_seconds": costs.get("optimal_seconds"),
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))

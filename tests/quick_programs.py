"""Programs that XLA compiles in a quarter of the time, where what it makes of them is not what is tested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import pytest

from systolic.backends.xla_device import XlaDevice, device_of

# LLVM improves nothing, gets a program in one piece, and not by way of MLIR, which takes as long again.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


class QuickDevice(XlaDevice):
    """XLA's own passes run as ever."""

    @property
    def description(self) -> tuple[str, ...]:
        return *super().description, "quick"  # what is kept is not taken for an optimised program

    @cached_property
    def _options(self) -> Any:
        options = super()._options
        options.env_option_overrides = list(QUICK.items())
        return options

    @staticmethod
    @cache
    def of(device: XlaDevice) -> QuickDevice:
        """The same device, shared by all backends like that one."""
        return QuickDevice(device._client)


@contextmanager
def quick_programs() -> Iterator[None]:
    """Backends that are made meanwhile compile quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("systolic.backends.xla.device_of", lambda platform: QuickDevice.of(device_of(platform)))
        yield

"""What programs cost on systolic hardware: targets as data, an array simulator, analytic models."""

from __future__ import annotations

from .matmul import Matmul, matmul
from .targets import Target, load_target, preset_names

__all__ = ["Matmul", "Target", "load_target", "matmul", "preset_names"]

"""Fixtures that several test files use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded reference data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SYSTOLIC_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the reference data at {folder} is absent (set SYSTOLIC_SHARED)")
    return folder

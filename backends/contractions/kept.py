"""Measured tables in the user's cache directory, by what they were measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..cache import default_cache_directory, read_entry, write_entry
from .table import FORMAT, FormTable, packaged_table, parse_table


def kept_table(machine: str, kind: str, directory: Path | None = None) -> FormTable:
    """The table that was measured on ``machine``, or else the packaged one of its ``kind``."""
    content = read_entry(_entry(machine, directory))
    return packaged_table(kind) if content is None else parse_table(content.decode())


def keep_table(table: FormTable, machine: str, directory: Path | None = None) -> Path:
    """Keeps a table for ``kept_table``; its file."""
    entry = _entry(machine, directory)
    write_entry(entry, table.to_text().encode())
    return entry


def _entry(machine: str, directory: Path | None) -> Path:
    name = hashlib.sha256(f"{FORMAT}\n{machine}".encode()).hexdigest()[:16]
    return (directory or default_cache_directory()) / f"forms-{name}.table"

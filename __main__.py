"""python -m systolic."""

from .runner.cli import main

main()

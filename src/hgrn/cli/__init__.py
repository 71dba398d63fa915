"""The command line: `main` runs one command; each command has a file of its own."""

from hgrn.cli.main import main

__all__ = ["main"]

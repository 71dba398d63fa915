"""Damaged and hostile files (mutants) for every reader.

A reader must read a mutant or refuse it with a message, within bounds of time and memory.
`pytest tests/fuzz` tries 2,000 mutants. `python -m tests.fuzz --mutants 100000` tries more, and
keeps those that fail.
"""

"""Damaged and hostile files for every reader: each mutant is read, or refused by a message, within bounds of time and memory.

`pytest tests/fuzz` tries 2,000 mutants; `python -m tests.fuzz --mutants 100000` tries more, and keeps those that fail.
"""

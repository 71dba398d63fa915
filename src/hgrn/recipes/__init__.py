"""The recipes that ship with the package: their names, files and one line about each.

This imports nothing heavy, so that `hgrn --help` stays quick.
"""

import re
from importlib.resources import files
from importlib.resources.abc import Traversable


def shipped() -> dict[str, Traversable]:
    """Name -> YAML file, in the order of the names, such as "quickstart" and "lm/wikitext103"."""
    found = {}
    for entry in files("hgrn.recipes").iterdir():
        inside = entry.iterdir() if entry.is_dir() else [entry]
        folder = f"{entry.name}/" if entry.is_dir() else ""
        for file in inside:
            if file.name.endswith(".yaml"):
                found[folder + file.name.removesuffix(".yaml")] = file
    return dict(sorted(found.items()))


def summaries() -> dict[str, str]:
    """Name -> the recipe's line about itself."""
    found = {}
    for name, file in shipped().items():
        line = re.search(r"^about: (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = line[1].strip("\"'") if line else ""
    return found

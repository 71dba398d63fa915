"""YAML as recipes are written: plain values, with bounds on what a few bytes may stand for.

A file can name a node once and repeat it by aliases, so that ten lines stand for billions of values; it can nest a
million lists; and it can ask for other types by tags. Here aliases count as what they stand for.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from hgrn.untrusted import read_bytes

LARGEST_FILE = 1 << 20  # bytes
MOST_NODES = 100_000  # with every alias written out
DEEPEST = 32
TEXT_TAGS = (None, "!", "tag:yaml.org,2002:str")
_FORMS = (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)",
        list("-+.0123456789"),
    ),
)


def parse_yaml(text: str) -> Any:
    """Dictionaries, lists, text, numbers, true, false and null; a key is text, a number, or one of the last three.

    Raises ValueError for what is not YAML, and for what is beyond the bounds above.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_yaml(file: Path) -> Any:
    """As `parse_yaml` of a file. Raises UserError for one that cannot be read, or is too large."""
    return parse_yaml(read_bytes(file, LARGEST_FILE).decode("utf-8"))


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of JSON: 1e-3 is a number, and a date or `on` is text."""

    yaml_implicit_resolvers = {}

    def __init__(self, stream: str):
        super().__init__(stream)
        self._depth = 0
        self._extents: dict[
            yaml.Node, tuple[int, int]
        ] = {}  # nodes and levels, of each node that is complete

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if getattr(event, "tag", None) not in TEXT_TAGS:
            raise yaml.MarkedYAMLError(
                None,
                None,
                f"the tag {event.tag[:80]} is not read here; write the value alone",
                event.start_mark,
            )
        if self._depth == DEEPEST:
            raise yaml.MarkedYAMLError(
                None, None, f"more than {DEEPEST} levels are nested", event.start_mark
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent) and node not in self._extents:
            raise yaml.MarkedYAMLError(
                None, None, "an alias stands inside of what it names", event.start_mark
            )
        nodes, levels = self._extents.setdefault(node, self._extent(node))
        if nodes > MOST_NODES or self._depth + levels > DEEPEST:
            rule = f"with its aliases written out, it has more than {MOST_NODES:,} values or {DEEPEST} levels"
            raise yaml.MarkedYAMLError(None, None, rule, event.start_mark)
        return node

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        """How many nodes and levels there are in a node whose parts are complete."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        parts = (
            [part for pair in node.value for part in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
        )
        extents = [self._extents[part] for part in parts]
        return 1 + sum(nodes for nodes, _ in extents), 1 + max(
            (levels for _, levels in extents), default=0
        )


for _kind, _form, _starts in _FORMS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_form})$"), _starts
    )

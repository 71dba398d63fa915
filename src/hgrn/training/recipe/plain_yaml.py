"""YAML as recipes are written: plain values, with bounds on what a few bytes may stand for.

A recipe may come from a stranger. YAML can name a node once and repeat it by aliases, so that
ten lines stand for billions of values. It can nest a million lists, and ask for other types by
tags. Here aliases count as what they stand for, and tags are refused.
"""

import re
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from hgrn.untrusted import read_bytes

LARGEST_FILE = 1 << 20  # bytes
MOST_NODES = 100_000  # with every alias written out
DEEPEST = 32
TEXT_TAGS = (None, "!", "tag:yaml.org,2002:str")
# Type, its form, and the characters that it may begin with.
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
    """The value of a text: dictionaries, lists, text, numbers, true, false and null.

    Keys are text, numbers, true, false or null. Raises ValueError for text that is not YAML or is
    beyond the bounds above.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_yaml(file: Path | Traversable) -> Any:
    """The value in a file, as by `parse_yaml`. Raises UserError for a file that cannot be read or
    is too large."""
    return parse_yaml(read_bytes(str(file), LARGEST_FILE).decode("utf-8"))


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of JSON: 1e-3 is a number, and a date or `on` is text."""

    yaml_implicit_resolvers = {}

    def __init__(self, stream: str):
        super().__init__(stream)
        self._depth = 0
        # Nodes and levels of each node that is complete.
        self._extents: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag not in TEXT_TAGS:
            raise _refusal(event, f"the tag {tag[:80]} is not read here; write the value alone")
        if self._depth == DEEPEST:
            raise _refusal(event, f"more than {DEEPEST} levels are nested")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        # A node is known here only when it is complete, so this alias would be its own part.
        if isinstance(event, yaml.AliasEvent) and node not in self._extents:
            raise _refusal(event, "an alias stands inside of what it names")
        nodes, levels = self._extents.setdefault(node, self._extent(node))
        if nodes > MOST_NODES or self._depth + levels > DEEPEST:
            raise _refusal(
                event,
                f"with its aliases written out, it has more than {MOST_NODES:,} values or "
                f"{DEEPEST} levels",
            )
        return node

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        """How many nodes and levels there are in a node whose parts are complete."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        extents = [self._extents[part] for part in parts]
        levels = max((levels for _, levels in extents), default=0)
        return 1 + sum(nodes for nodes, _ in extents), 1 + levels


def _refusal(event: yaml.Event, rule: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, rule, event.start_mark)


for _kind, _form, _starts in _FORMS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_form})$"), _starts
    )

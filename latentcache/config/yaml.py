"""YAML of configuration files and overrides, without YAML 1.1's surprises."""

from __future__ import annotations

import re
from typing import Any

import yaml

from latentcache.errors import ConfigError

_INT, _FLOAT, _BOOL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool"))
_MERGE = "tag:yaml.org,2002:merge"
#: What YAML 1.1 takes for something else than text: dates have no place here, nor has `=`.
_DROPPED = {_INT, _FLOAT, _BOOL, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: 16:9, no, on and 2024-05-01 are text. No key comes twice in silence."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - how PyYAML declares it
        first: [r for r in resolvers if r[0] not in _DROPPED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._unfinished: list[str | None] = []  # anchors of the nodes that are being read

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Refuse an alias within what it stands for: that would have no end."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._unfinished:
            raise _problem(f"*{event.anchor} is within what it stands for", event.start_mark)
        self._unfinished.append(getattr(event, "anchor", None))
        node: yaml.Node | None = super().compose_node(parent, index)
        self._unfinished.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key that comes twice. Nodes change after this: merges put keys into them."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _problem(f"the key {key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names: a section's own keys count most, then those of the first one merged."""
        merged = [value for key, value in node.value if key.tag == _MERGE]
        if not merged:
            return
        parts = [[pair for pair in node.value if pair[0].tag != _MERGE]]
        for value in merged:
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(part, yaml.MappingNode):
                    raise _problem("`<<` takes sections with keys", part.start_mark)
                self.flatten_mapping(part)
                parts.append(part.value)
        found = {_identity(key): (key, value) for part in reversed(parts) for key, value in part}
        node.value = list(found.values())

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Refuse `!!int x` and the like, for which PyYAML raises whatever it stumbles over."""
        try:
            return super().construct_object(node, deep)
        except (LookupError, AttributeError, TypeError, ValueError):
            name = node.tag.rpartition(":")[2]
            raise _problem(f"the value does not fit its type, {name}", node.start_mark) from None


def _identity(key: yaml.Node) -> tuple[str, Any]:
    return key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key)


def _problem(text: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


_Loader.add_implicit_resolver(
    _BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    _INT, re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?$"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Parse YAML; raises ConfigError, in one line."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{error.problem}{at}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(" ".join(str(error).split())) from None

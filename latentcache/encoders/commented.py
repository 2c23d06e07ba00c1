"""A configuration as text with every key: those that are set, and the others as comments."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from latentcache.config.sections import Config
from latentcache.encoders import builtin
from latentcache.encoders.batching import Batching
from latentcache.encoders.tiled import Tiling

WIDTH = 98


def commented(raw: Mapping[str, Any]) -> str:
    """Return a configuration, as read from YAML, with a comment on every key that there is."""
    sections = []
    for name in Config.model_fields:
        model = _model_of(Config, name)
        if name == "encoder":
            model = builtin(raw[name]["kind"]).Config
        if model is None:  # what has keys of the user's own: fields
            lines = _key(name, Config, Config.model_fields[name], raw, 0)
        else:
            lines = _section(name, model, raw.get(name), 0)
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def _section(name: str, model: type[BaseModel], values: Any, depth: int) -> Iterator[str]:
    """Yield the lines of a section; of one that is not set all are comments."""
    lead = "  " * depth
    said = (
        (model.__doc__ or "").strip() if model.__module__.startswith("latentcache.config.") else ""
    )
    yield from _comment(said, lead)
    yield f"{lead}{name}:" if values is not None else f"{lead}# {name}:"
    fields = sorted(model.model_fields.items(), key=lambda item: item[0] != "kind")
    for key, field in fields:
        yield from _key(key, model, field, values, depth + 1)
    if name == "encoder":
        yield from _key("batch", Batching, Batching.model_fields["batch"], values, depth + 1)
        yield from _section("tiling", Tiling, (values or {}).get("tiling"), depth + 1)


def _key(key: str, model: type[BaseModel], field: Any, values: Any, depth: int) -> Iterator[str]:
    inner, lead = _model_of(model, key), "  " * depth
    own = values.get(key) if isinstance(values, Mapping) else None
    if inner is not None:
        inside = _section(key, inner, own, depth if values is not None else 0)
        yield from inside if values is not None else (f"{lead}{line}" for line in inside)
        return
    yield from _comment(field.description or "", lead)
    if own is not None:
        value = yaml.safe_dump(own, default_flow_style=True, width=10_000)
        yield f"{lead}{key}: {value.removesuffix('...' + chr(10)).strip()}"
    else:
        default = field.get_default(call_default_factory=True)
        shown = "(required)" if field.is_required() else json.dumps(default)
        yield f"{lead}# {key}: {shown}"


def _comment(text: str, lead: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), WIDTH - len(lead)):
        yield f"{lead}# {line}"


def _model_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model of a section, or None for a value."""
    annotation: Any = model.model_fields[name].annotation
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None

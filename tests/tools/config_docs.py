"""Documentation tables that are made from the code: `python -m tests.tools.config_docs` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from latentcache.config.fields import MODELS, MaskedField
from latentcache.config.sections import Config
from latentcache.core.records import REASONS
from latentcache.encoders import KINDS, builtin
from latentcache.encoders.batching import Batching
from latentcache.encoders.tiled import Tiling

DOCS = Path(__file__).parents[2] / "docs"
BEGIN = "<!-- made by `python -m tests.tools.config_docs`, from here -->"
END = "<!-- to here -->"
COMMAND = "python -m tests.tools.config_docs"
BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}


def settings() -> str:
    """Return a table for every section of a configuration, those of the encoders among them."""
    parts = [part for name in Config.model_fields for part in _section(name)]
    return "\n\n".join(parts)


def reasons() -> str:
    """Return the table of what clips can fail for."""
    lines = ["| reason | |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {words} |" for name, words in REASONS.items())])


#: What stands between BEGIN and END, by page.
MADE: Mapping[Path, Callable[[], str]] = {
    DOCS / "configuration.md": settings,
    DOCS / "reliability.md": reasons,
}


def page(path: Path) -> str:
    """Return a page's text with the current tables. Raises ValueError if it has no place for them."""
    head, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN!r} and {END!r}, between which the tables go")
    return f"{head}{BEGIN}\n\n{MADE[path]()}\n\n{END}{tail}"


def main() -> None:
    """Write the tables into the pages."""
    for path in MADE:
        path.write_text(page(path), encoding="utf-8")
        print(path)


def _section(name: str) -> Iterator[str]:
    if name == "encoder":
        yield from _encoders()
        return
    if name == "fields":
        yield from _fields()
        return
    model = _model_of(Config, name)
    assert model is not None, f"{name} is no section"
    yield from _tables_of(model, name)


def _encoders() -> Iterator[str]:
    """Yield the tables of the kinds of encoders; kinds that take the same keys share one."""
    yield f"## encoder\n\n{Config.model_fields['encoder'].description}"
    kinds: dict[str, list[str]] = {}
    for kind in KINDS:
        model = builtin(kind).Config
        kinds.setdefault(_table(model, but=("kind",)), []).append(f"`{kind}`")
    for table, names in kinds.items():
        yield f"### encoder of kind {', '.join(names)}\n\n{table}"
    yield f"### encoder of any kind\n\n{(Batching.__doc__ or '').strip()}\n\n{_table(Batching)}"
    yield from _tables_of(Tiling, "encoder.tiling")


def _fields() -> Iterator[str]:
    """Yield the tables of the kinds of fields."""
    yield f"## fields\n\n{Config.model_fields['fields'].description}"
    named: list[tuple[str, type[BaseModel]]] = [
        (f"`{kind}`", model) for kind, model in MODELS.items()
    ]
    for kind, model in (*named, ("`visual` with a mask", MaskedField)):
        words = (model.__doc__ or "").strip()
        yield f"### field of kind {kind}\n\n{words}\n\n{_table(model, but=('kind',))}"


def _tables_of(model: type[BaseModel], path: str) -> Iterator[str]:
    level = "##" if "." not in path else "###"
    words = (model.__doc__ or "").strip()
    yield f"{level} {path}\n\n{words}\n\n{_table(model)}"
    for name in model.model_fields:
        inner = _model_of(model, name)
        if inner is not None:
            yield from _tables_of(inner, f"{path}.{name}")


def _table(model: type[BaseModel], but: tuple[str, ...] = ()) -> str:
    schema = model.model_json_schema()
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name in but:
            continue
        if _model_of(model, name) is not None:
            kind, default = "section", ""
        else:
            kind = type_words(schema["properties"][name], schema.get("$defs", {}))
            default = "required" if field.is_required() else f"`{_default(field)}`"
        words = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {kind} | {default} | {words} |")
    return "\n".join(lines)


def type_words(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema takes."""
    if "$ref" in schema:
        return type_words(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        members = [type_words(member, defs) for member in schema["anyOf"]]
        return " or ".join(dict.fromkeys(word for word in members if word != "null"))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return _list_words(schema, defs)
    if schema.get("type") == "object":
        return "mapping"
    bounds = [words.format(schema[bound]) for bound, words in BOUNDS.items() if bound in schema]
    return " ".join([TYPES[schema["type"]], ", ".join(bounds)]).strip()


def _list_words(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"[{'; '.join(type_words(item, defs) for item in schema['prefixItems'])}]"
    return f"list of: {type_words(schema['items'], defs)}"


def _default(field: Any) -> str:
    return json.dumps(field.get_default(call_default_factory=True))


def _model_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model of a section, or None for a value."""
    annotation: Any = model.model_fields[name].annotation
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


if __name__ == "__main__":
    main()

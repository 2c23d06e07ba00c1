"""Configuration files: reading, overrides, and errors that name the nearest key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from latentcache.config.sections import Config, of_a_cache
from latentcache.config.yaml import parse_yaml
from latentcache.core.regular_files import read_regular
from latentcache.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], data: Any, where: str) -> Model:
    """Validate `data`; raises ConfigError with one line per problem, naming the nearest known key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems: dict[tuple[str, ...], list[Any]] = {}
        for problem in error.errors():
            path = _path_in(data, problem["loc"], is_missing=problem["type"] == "missing")
            problems.setdefault(path, []).append(problem)
        # Members of a union that took the value for something else failed further out.
        outer = {path[:i] for path in problems for i in range(len(path))}
        lines = [_line(model, path, p) for path, p in problems.items() if path not in outer]
        raise ConfigError("\n".join([f"{where}:", *lines])) from None


def _path_in(data: Any, loc: Sequence[str | int], is_missing: bool) -> tuple[str, ...]:
    """Return the keys of an error's location, leaving out the names of a union's members."""
    path: list[str] = []
    for i, part in enumerate(loc):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            if not (is_missing and i == len(loc) - 1):
                continue
        path.append(str(part))
    return tuple(path)


def _line(model: type[BaseModel], path: Sequence[str], problems: Sequence[Any]) -> str:
    key, first = ".".join(path), problems[0]
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        near = did_you_mean(path[-1], known)
        return f"  {key}: unknown key.{near} Known here: {', '.join(known)}"
    if first["type"] == "missing":
        return f"  {key}: required, but not given"
    text = " or ".join(dict.fromkeys(_message(p["msg"]) for p in problems))
    if text.startswith("should be "):
        text = "should be " + text.removeprefix("should be ").replace(" or should be ", " or ")
    quiet = first["type"] == "value_error" or _may_be_secret(path)
    got = "" if quiet else f"; got {repr(first['input'])[:100]}"
    if first["type"] == "string_type" and isinstance(first["input"], bool | int | float):
        got += ". Write it in quotes"
    return f"  {key}: {text}{got}" if key else f"  {text}{got}"  # of the section as a whole


def _message(message: str) -> str:
    """Return pydantic's message in words for people who write YAML."""
    message = re.sub(r"^(Value error, |Input |(List|Tuple|String) (?=should))", "", message)
    message = re.sub(r"a valid dictionary.*", "a section with keys", message)
    message = re.sub(r"a valid integer.*", "a whole number", message)
    message = re.sub(r"valid (?=number|list|tuple|string)", "", message)
    return re.sub(r" after validation|, unable to parse.*", "", message)


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = next((t for t in options if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `data` with `dotted.key=value` overrides; values are YAML. Raises ConfigError."""
    for override in overrides:
        key, equals, text = override.partition("=")
        secret = _may_be_secret(key.split("."))
        shown = repr(f"{key}=***" if secret else override)
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{shown} is not an override; write section.key=value")
        try:
            value = parse_yaml(text)
        except ConfigError as error:
            why = "" if secret else f": {error}"
            raise ConfigError(f"{shown}: the value is not YAML{why}") from None
        data = _set(data, key.split("."), value, shown)
    return data


def _may_be_secret(path: Sequence[str]) -> bool:
    return "storage_options" in path


def _set(data: dict[str, Any], path: Sequence[str], value: Any, shown: str) -> dict[str, Any]:
    head, *rest = path
    if not rest:
        return {**data, head: value}
    inner = data.get(head)
    if inner is not None and not isinstance(inner, dict):
        raise ConfigError(f"{shown}: {head!r} is a value, not a section with keys")
    return {**data, head: _set(inner or {}, rest, value, shown)}


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides, validate. Raises ConfigError."""
    return validate(Config, apply_overrides(read_mapping(path), overrides), path)


def read_mapping(path: str) -> dict[str, Any]:
    """Return what a configuration file holds. Raises ConfigError unless that is keys with values."""
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no configuration; see configs/demo.yaml for an example")
    return data


def read_yaml(path: str) -> Any:
    """Return what a YAML file holds. Raises ConfigError."""
    try:
        text = read_regular(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {path!r}: {error}") from None
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None


def load_stored_config(
    data: Mapping[str, Any],
    *,
    url: str,
    storage_options: Mapping[str, Any],
    overrides: Sequence[str] = (),
    allowed_encoders: Sequence[str] = (),
) -> Config:
    """Read the configuration of the cache at `url`, with overrides. Raises ConfigError.

    A cache may be a stranger's: it brings no trust along, and of encoders only those of this package.
    allowed_encoders: modules of others that the caller allows; one that an override names is allowed, too.
    """
    stored = of_a_cache(data)
    cache = {**stored["cache"], "url": url, "storage_options": dict(storage_options)}
    changed = apply_overrides({**stored, "cache": cache}, overrides)
    config = validate(Config, changed, "the cache's configuration")
    given = apply_overrides({}, overrides).get("encoder", {})
    named = [*allowed_encoders, given.get("kind") if isinstance(given, dict) else None]
    check_encoder(config.encoder["kind"], named, f"add --allow-encoder {config.encoder['kind']}")
    return config


def check_encoder(kind: str, named: Sequence[str | None], fix: str) -> None:
    """Raise ConfigError if a cache's encoder is a module of others that the caller has not named.

    named: modules, or kinds; `module` allows `module:name`. fix: how to allow it.
    """
    is_module = "." in kind or ":" in kind
    if not is_module or kind in named or kind.partition(":")[0] in named:
        return
    raise ConfigError(
        f"the cache's encoder is {kind!r}, a module of its maker's own. Importing it runs its code, so a "
        f"cache cannot ask for that. Nothing was imported. If you know the module: {fix}"
    )

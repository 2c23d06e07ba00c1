"""Numbers of configurations: true and false are none, in any section, field or encoder's settings."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
from pydantic import ValidationError

import latentcache.config
import latentcache.encoders
from latentcache.config.base import Section
from latentcache.config.files import validate
from latentcache.config.sections import Config
from latentcache.errors import ConfigError


def sections() -> list[type[Section]]:
    """Return every section there is, those of encoders and of texts too."""
    for package in (latentcache.config, latentcache.encoders):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                importlib.import_module(module.name)
            except ImportError:  # a package that is not installed
                assert ".encoders." in module.name
    found, todo = set(), [Section]
    while todo:
        for section in todo.pop().__subclasses__():
            if section not in found and section.__module__.startswith("latentcache."):
                found.add(section)
                todo.append(section)
    return sorted(found, key=lambda section: (section.__module__, section.__name__))


def is_taken(section: type[Section], name: str, value: Any) -> bool:
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        return all(problem["loc"][:1] != (name,) for problem in error.errors())
    return True


@pytest.mark.slow
def test_no_field_of_numbers_takes_true_or_false() -> None:
    found = sections()
    names = {
        f"{section.__module__.removeprefix('latentcache.')}.{section.__name__}" for section in found
    }
    assert {"config.sections.RunConfig", "encoders.tiled.Tiling", "encoders.dct.Config"} <= names
    for section in found:
        for name, field in section.model_fields.items():
            if "bool" in repr(field.annotation) or "Any" in repr(field.annotation):
                continue
            for value in (True, False):
                for given in (value, [value], [value, value], [[value, 1]], {"a": value}):
                    assert not is_taken(section, name, given), (section, name, given)


DATA: dict[str, Any] = {
    "corpus": {"source": "x"},
    "clips": {"frames": 1, "size": [64, 64]},
    "encoder": {"kind": "dct"},
    "cache": {"url": "c"},
}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("clips", "frames", True),
        ("clips", "frames", [5, True]),
        ("clips", "fps", True),
        ("clips", "size", [True, 64]),
        ("corpus", "weight", False),
        ("corpus", "weight", {"a/*": 2.5, "*": True}),
        ("cache", "shard_clips", True),
        ("run", "workers", True),
        ("run", "max_retries", False),
        ("quality", "min_psnr", True),
    ],
)
def test_a_boolean_for_a_number_is_one_line(section: str, key: str, value: Any) -> None:
    data = {**DATA, section: {**DATA.get(section, {}), key: value}}
    says = rf"^c\.yaml:\n  {section}\.{key}: should be a number, not (true|false)$"
    with pytest.raises(ConfigError, match=says):
        validate(Config, data, "c.yaml")


def test_numbers_in_text_and_booleans_where_they_belong_are_taken() -> None:
    data = {
        **DATA,
        "clips": {"frames": "5", "fps": "1.5", "size": ["64", 64], "resize": {"antialias": True}},
        "encoder": {"kind": "dct", "any": True},
    }
    config = validate(Config, data, "c.yaml")
    assert (config.clips.frames, config.clips.fps, config.clips.size) == (5, 1.5, (64, 64))
    assert config.encoder["any"] is True

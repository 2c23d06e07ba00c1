"""What every section of a configuration is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from latentcache.storage.urls import has_password


def _without_password(url: str) -> str:
    """Refuse `scheme://user:password@host`: the cache stores its configuration, including URLs."""
    if has_password(url):
        raise ValueError(
            "the URL carries a password, which the cache would store. Remove it, and give "
            "credentials in storage_options or in the environment"
        )
    return url


#: What YAML 1.1 takes for booleans, and YAML 1.2 for text.
_BOOLEAN_WORDS = frozenset({"yes", "no", "on", "off"})


def _without_boolean_words(value: Any, key: str = "") -> Any:
    """Refuse `verify: no` where nothing says of what type a value is: as text it would count as true."""
    if isinstance(value, str) and value.lower() in _BOOLEAN_WORDS:
        raise ValueError(f"{key or 'an item'} is the text {value!r} here; write true or false")
    for name, inner in value.items() if isinstance(value, dict) else ():
        _without_boolean_words(inner, str(name))
    for inner in value if isinstance(value, list | tuple) else ():
        _without_boolean_words(inner, key)
    return value


#: Settings that are handed on as they are.
Options = Annotated[dict[str, Any], AfterValidator(_without_boolean_words)]
Url = Annotated[str, Field(min_length=1), AfterValidator(_without_password)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _types_in(annotation: Any) -> Iterator[Any]:
    """Yield the types of which a field's values may be, or consist."""
    if get_origin(annotation) is Annotated:
        yield from _types_in(annotation.__origin__)
    elif get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif inner := get_args(annotation):
        for each in inner:
            yield from _types_in(each)
    else:
        yield annotation


def _refuse_booleans(value: Any) -> None:
    if isinstance(value, bool):
        raise ValueError(f"should be a number, not {str(value).lower()}")  # noqa: TRY004 - for pydantic
    inner = value.values() if isinstance(value, dict) else value
    for each in inner if isinstance(value, dict | list | tuple) else ():
        _refuse_booleans(each)


class Section(BaseModel):
    """Base of every part of the configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `frames: true`, which Python, and so pydantic, takes for 1."""
        types = set(_types_in(cls.model_fields[str(info.field_name)].annotation))
        if {int, float} & types and not {bool, Any} & types:
            _refuse_booleans(value)
        return value


class GrownSection(Section):
    """A section that has got keys since caches were first made with it.

    LATER: keys that are written down only where they differ from their defaults, so that a recipe without
    them is, byte for byte, the one from before there were such keys.
    """

    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in handler(self).items()
            if name not in self.LATER or getattr(self, name) != fields[name].default
        }

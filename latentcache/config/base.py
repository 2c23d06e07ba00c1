"""What every section of a configuration is made of."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
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


class Section(BaseModel):
    """Base of every part of the configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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

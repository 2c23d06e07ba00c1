"""What every section of a configuration is made of."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Positive = Annotated[int, Field(gt=0)]


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

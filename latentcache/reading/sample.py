"""A sample of a cache: a dict whose fields are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Sample(dict[str, Any]):
    """A clip's latents and columns. `sample["umt5"]` reads the field umt5; its keys do not list fields.

    read_field: returns what a field has of the clip by key; raises KeyError where it has nothing.
    """

    def __init__(
        self, values: Mapping[str, Any], read_field: Callable[[str], Mapping[str, Any]]
    ) -> None:
        super().__init__(values)
        self._read_field = read_field

    def finish_fields(
        self,
        finish: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        read_text: Callable[[str], Mapping[str, Any] | None],
    ) -> None:
        """Have what is read of fields from now on finished, such as normalised.

        read_text: reads the fields among whose texts one is chosen, and returns None for any other.
        """
        read = self._read_field

        def read_and_finish(key: str) -> Mapping[str, Any]:
            found = read_text(key)
            return finish(read(key) if found is None else found)

        self._read_field = read_and_finish

    def __missing__(self, key: str) -> Any:
        found = self._read_field(key)
        self.update(found)
        if key not in found:
            raise KeyError(key)
        return found[key]

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)

"""What a field takes of a clip's columns: the one rule of runs, which encode it, and of readers."""

from __future__ import annotations

from collections.abc import Sequence

from latentcache.config.caption_fields import CaptionField
from latentcache.config.fields import FieldConfig, path_columns

#: What a field takes of one clip: a path of each column of paths, then its texts: none, one, or several of
#: which a batch has one.
Texts = tuple[str, ...]


class Taken:
    """What a field takes. columns: their names; num_paths: how many of them, the first ones, hold paths."""

    def __init__(self, config: FieldConfig) -> None:
        self.columns, self.num_paths = config.columns, len(path_columns(config))
        is_empty = isinstance(config, CaptionField) and config.missing == "empty"
        self._without_text: Texts = ("",) if is_empty else ()

    def of(self, values: Sequence[Sequence[str | None]]) -> Texts:
        """Return what it takes of one clip. values: what each column has. Blank texts are none."""
        given = [[text for text in some if text is not None and text.strip()] for some in values]
        paths = tuple(some[0] if some else "" for some in given[: self.num_paths])
        texts = tuple(text for some in given[self.num_paths :] for text in some)
        return paths + (texts or self._without_text)

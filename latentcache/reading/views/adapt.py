"""Any view as the loader calls it: one of ours, an object with some of its methods, or a function."""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from latentcache.core.posterior import sample_seed
from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError
from latentcache.reading.views.protocol import Pick, Record
from latentcache.reading.views.starts import Run

#: What batches have of every sample, whatever its view: a view gives other names.
TAKEN = frozenset({"key", "bucket", "cache", "dropped"})


class AnyView:
    """A view with what it leaves out filled in. seed: of the loader."""

    def __init__(self, view: Any, seed: int) -> None:
        methods = [getattr(view, name, None) for name in ("pick", "make")]
        if isinstance(view, type) or not (callable(view) or any(map(callable, methods))):
            raise ConfigError(
                f"view {view!r} is no view: give Window(frames=16), Sparse(...), Tokens(...), "
                "MultiScale(), an object with `pick` or `make`, or a function make(record, arrays, pick)."
            )
        self._view, self._seed = view, seed
        self._pick, make = methods
        self._make: Callable[..., Any] | None = make or (view if callable(view) else None)

    def of_cache(self, cache: Any) -> AnyView:
        """Return the view with what it needs of a cache, such as its quantiser."""
        of_cache = getattr(self._view, "of_cache", None)
        return AnyView(of_cache(cache), self._seed) if callable(of_cache) else self

    def __repr__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The name of the view's class, or of the function."""
        view = self._view
        named = view if hasattr(view, "__qualname__") else type(view)
        return str(named.__qualname__)

    def identity(self) -> dict[str, Any]:
        """Return name and settings, as JSON values. Raises ConfigError."""
        view = self._view
        settings: Any = {}
        if callable(getattr(view, "settings", None)):
            settings = view.settings()
        elif dataclasses.is_dataclass(view) and not isinstance(view, type):
            settings = dataclasses.asdict(view)
        try:
            return {"name": self.name, "settings": json.loads(json.dumps(settings))}
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"view {self.name}: its settings are no JSON values ({error}), so a loader's state cannot "
                "hold them. Give it a method `settings` that returns some."
            ) from None

    def check(self, spec: LatentSpec, buckets: Mapping[str, int]) -> None:
        """Raise ConfigError where the view makes no sense of a cache."""
        if callable(check := getattr(self._view, "check", None)):
            check(spec, buckets)

    def count(self, num_frames: int) -> int:
        """Return how many samples a clip gives: 1, unless the view says otherwise. Raises ConfigError."""
        count = getattr(self._view, "count", None)
        found = count(num_frames) if callable(count) else 1
        if type(found) is not int or found < 1:
            raise ConfigError(f"view {self.name}: count({num_frames}) is {found!r}, not 1 or more")
        return found

    def run(self, cache: Any) -> Run | None:
        """Return what contiguous parts it takes, if clips give them in other numbers than `count` says."""
        run = getattr(self._view, "run", None)
        return run(cache) if callable(run) else None

    def counts(self, legal: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return how many samples clips give, by where parts may begin in each, [N, t]."""
        return np.asarray(self._view.counts(legal), np.int64)

    def most_frames(self, num_frames: int, num_next: int = 0) -> int:
        """Return the most latent frames of a sample. num_next: clips that it may reach into."""
        most = getattr(self._view, "most_frames", None)
        limit = num_frames * (1 + num_next)
        return min(limit, int(most(num_frames))) if callable(most) else num_frames

    def pick(self, record: Record, epoch: int) -> Pick:
        """Choose what is read. Raises ConfigError where there are no such frames."""
        if not callable(self._pick):
            return Pick()
        seed = sample_seed(self._seed, epoch, record.key, "view", record.number)
        pick = self._pick(record, torch.Generator().manual_seed(seed))
        if not isinstance(pick, Pick):
            raise ConfigError(
                f"view {self.name}: pick returned {pick!r}. Return latentcache.Pick(frames=[...])."
            )
        if pick.frames is None:
            return pick
        try:
            frames = [operator.index(frame) for frame in pick.frames]
        except TypeError:
            raise ConfigError(
                f"view {self.name}: it picks the frames {pick.frames!r}. Give a list of whole numbers."
            ) from None
        limit = record.num_frames * (1 + len(record.following))
        if not frames or not all(0 <= frame < limit for frame in frames):
            raise ConfigError(
                f"view {self.name}: it picks the latent frames {frames} of clip {record.key!r}, which has "
                f"0 to {limit - 1}. Pick at least one, and only those."
            )
        return dataclasses.replace(pick, frames=frames)

    def make(self, record: Record, latents: torch.Tensor, pick: Pick) -> dict[str, Any]:
        """Return what a batch has of a sample. Raises ConfigError where that is no such thing."""
        if self._make is None:
            return {"latents": latents}
        made = self._make(record, {"latents": latents}, pick)
        if not isinstance(made, Mapping) or not all(isinstance(name, str) for name in made):
            raise ConfigError(
                f"view {self.name}: make returned {type(made).__name__}. Return a dict of tensors by name."
            )
        if taken := TAKEN.intersection(made):
            raise ConfigError(
                f"view {self.name}: make gives {', '.join(sorted(taken))}, which batches have already"
            )
        return dict(made)


def latent_frames(shape: tuple[int, ...]) -> int:
    """Return the latent frames of a stored sample; multi-scale ids [n] are of one frame."""
    return shape[-3] if len(shape) >= 3 else 1


def record_of(
    key: str,
    bucket: str,
    number: int,
    shape: tuple[int, ...],
    spec: LatentSpec,
    read_column: Callable[[str], Any],
    following: tuple[Record, ...] = (),
    run: Run | None = None,
    sampling: str = "nearest",
) -> Record:
    """Return a clip's record. shape: of its stored sample; sampling: as in `clips`."""
    return Record(
        key=key,
        bucket=Bucket.parse(bucket),
        number=number,
        num_frames=latent_frames(shape),
        spec=spec,
        read_column=read_column,
        following=following,
        run=run,
        sampling=sampling,
    )

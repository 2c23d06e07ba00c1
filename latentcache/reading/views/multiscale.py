"""Multi-scale ids as a VAR transformer takes them: `MultiScale`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError
from latentcache.reading.views.protocol import Pick, Record


@dataclass(frozen=True)
class MultiScale:
    """`ids` int64 [B, n], a VAR transformer's targets, and its `teacher_input` float32 [B, n - 1, D].

    teacher_input: makes the input of ids [1, n], as `VAREncoder.teacher_input` does; several threads
    call it. None: the cache's own quantiser makes it; if the cache has none, a batch has only ids.
    """

    teacher_input: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if self.teacher_input is not None and not callable(self.teacher_input):
            raise ConfigError(
                f"MultiScale: teacher_input is {self.teacher_input!r}. Give a function of ids [1, n], such "
                "as the method of that name of an encoder of kind var."
            )

    def check(self, spec: LatentSpec, buckets: Mapping[str, int]) -> None:  # noqa: ARG002 - as views have it
        """Raise ConfigError where a cache has no multi-scale ids."""
        if spec.ids is None or not spec.ids.scales:
            raise ConfigError(
                f"MultiScale: {spec.model_class} gives no multi-scale ids, as encoder.kind var does. For "
                "other ids use Tokens."
            )

    def of_cache(self, cache: Any) -> MultiScale:
        """Return it with the quantiser of a `Cache`, if that has one and no function is given."""
        if self.teacher_input is not None or cache.manifest.quantiser_sha256 is None:
            return self
        return MultiScale(cache.quantiser().teacher_input)

    def make(
        self,
        record: Record,  # noqa: ARG002 - as views have it
        arrays: Mapping[str, torch.Tensor],
        pick: Pick,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return ids, and the input that is made of them."""
        ids = arrays["latents"].to(torch.int64)
        if self.teacher_input is None:
            return {"ids": ids}
        made = self.teacher_input(ids[None])[0].detach().cpu()
        return {"ids": ids, "teacher_input": made}

    def settings(self) -> Mapping[str, Any]:
        """Return whether there is an input."""
        return {"teacher_input": self.teacher_input is not None}

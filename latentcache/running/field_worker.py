"""What a worker of a field needs, and which worker it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentcache.config.caption_fields import JointField, TextField
from latentcache.config.fields import (
    ArrayField,
    AudioField,
    FieldConfig,
    MaskedField,
    RawField,
    VisualField,
)
from latentcache.format.fields.manifest import FieldManifest
from latentcache.running.array_worker import ArrayWorker
from latentcache.running.audio_worker import AudioWorker
from latentcache.running.joint_worker import JointWorker
from latentcache.running.masked_worker import MaskedWorker
from latentcache.running.text_worker import TextWorker
from latentcache.running.visual_worker import VisualWorker
from latentcache.running.worker import Worker, WorkerSpec, check_cache


@dataclass(frozen=True, kw_only=True)
class FieldSpec(WorkerSpec):
    """What a worker of a field needs, beside that of the cache."""

    field: FieldManifest
    settings: FieldConfig

    def start(self, device: torch.device) -> Worker:
        """Check the cache, and build the worker."""
        check_cache(self)
        if isinstance(self.settings, TextField):
            return TextWorker(self, self.field, self.settings, device)
        if isinstance(self.settings, JointField):
            return JointWorker(self, self.field, self.settings, device)
        if isinstance(self.settings, AudioField):
            return AudioWorker(self, self.field, self.settings, device)
        if isinstance(self.settings, MaskedField):
            return MaskedWorker(self, self.field, self.settings, device)
        if isinstance(self.settings, ArrayField):
            return ArrayWorker(self, self.field, self.settings)
        assert isinstance(self.settings, RawField | VisualField), "a view stores nothing"
        return VisualWorker(self, self.field, self.settings, device)

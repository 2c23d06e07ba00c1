"""One linear layer of a component of diffusers: LTX-2's feature extractor, without its connectors."""

from __future__ import annotations

import hashlib

import torch

from latentcache.encoders.pretrained.files import Component
from latentcache.errors import ConfigError


class Projection:
    """The layer `name` of a component. Its weights are read at once, and used once it is loaded."""

    def __init__(self, component: Component, name: str) -> None:
        found = component.tensors_named((f"{name}.weight", f"{name}.bias"))
        weight = found.get(f"{name}.weight")
        if weight is None:
            raise ConfigError(
                f"{component.name}: the weights in {component.folder} hold no {name}.weight, which reduces "
                "the layers of the text model. Name the folder of the checkpoint's connectors."
            )
        self._weight: torch.Tensor = weight
        self._bias: torch.Tensor | None = found.get(f"{name}.bias")
        self.width = int(weight.shape[0])

    def sha256(self) -> str:
        """Return the SHA-256 of the layer's tensors."""
        digest = hashlib.sha256()
        for tensor in (self._weight, self._bias):
            if tensor is not None:
                digest.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def load(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move the layer to a device."""
        self._weight = self._weight.to(device, dtype)
        self._bias = None if self._bias is None else self._bias.to(device, dtype)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return the projected states."""
        return torch.nn.functional.linear(states, self._weight, self._bias)

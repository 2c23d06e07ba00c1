"""A checkpoint's image processor, and what recipes say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from latentcache.encoders.pretrained.files import Component
from latentcache.encoders.pretrained.loading import load_image_processor

#: How the classes of image processors end that run on PIL; the others run on torchvision.
_PIL = "Pil"


class ImageProcessor:
    """Loads it, and runs it: on torchvision if that is installed, and on PIL if not."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.processor: Any = load_image_processor(component)
        self._name = type(self.processor).__name__
        self.backend = "pillow" if self._name.endswith(_PIL) else "torchvision"

    def __call__(self, images: Sequence[Image.Image]) -> Any:
        """Return a model's inputs for the images of one clip, by name."""
        return self.processor(images=list(images), return_tensors="pt")

    def recipe(self) -> dict[str, object]:
        """Return what its values depend on, beside the backend's version."""
        return {
            "class": self._name,
            "backend": self.backend,
            "sha256": self.component.files_sha256(),
        }

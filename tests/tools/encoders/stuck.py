"""An encoder whose weights never come: as from a mount that hangs."""

from __future__ import annotations

import threading

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders.protocol import Encoder
from tests.tools.encoders import deadly

Config = deadly.Config
describe = deadly.describe
identity = deadly.identity


def build(config: deadly.Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    threading.Event().wait()
    raise AssertionError("it waits for ever")

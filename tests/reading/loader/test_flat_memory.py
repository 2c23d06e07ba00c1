"""The memory of a stream of latents and fields is the same after 20 epochs as after three."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tools.caches import ROOT
from tests.tools.fields import add, cache_of

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

NUM_CLIPS, EPOCHS, WARM = 256, 20, 3
#: 0.44 MB of latents and 0.26 MB of states per clip: 180 MB per epoch.
CLIP, LENGTH, WIDTH = (33, 256, 384), 128, 1024
#: A stream that kept 1 % of what it gives would grow by so much.
MOST_BYTES = 30 << 20
STREAM = """
import gc, json, sys
import psutil
from torch.utils.data import DataLoader
from latentcache import LatentLoader

url, num_workers, num_epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
loader = LatentLoader(url, batch_size=4, fields=["text"], caption_dropout=0.1, prefetch_bytes=1 << 24)
batches = loader
if num_workers:
    batches = DataLoader(loader, batch_size=None, num_workers=num_workers, persistent_workers=True)

def held_bytes():
    gc.collect()
    me = psutil.Process()
    return sum(p.memory_full_info().pss for p in (me, *me.children(recursive=True)))

held, num = [], 0
for epoch in range(num_epochs):
    loader.set_epoch(epoch)
    for batch in batches:
        num += len(batch["text"])
    del batch
    held.append(held_bytes())
print(json.dumps([num, held]))
"""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_memory_does_not_grow_with_epochs(num_workers: int, tmp_path: Path) -> None:
    cache = cache_of(
        tmp_path, [f"{n} " + "word " * 99 for n in range(NUM_CLIPS)], clip=CLIP, shard_clips=16
    )
    family = "tests.tools.encoders.noise_text"
    add(cache, text={"kind": "text", "family": family, "length": LENGTH, "width": WIDTH})
    words = [cache.storage.url, str(num_workers), str(EPOCHS)]
    command = [sys.executable, "-c", STREAM, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    num, held = json.loads(done.stdout)
    assert num == EPOCHS * (NUM_CLIPS - 1)  # one has failed
    after = np.array(held[WARM - 1 :])
    assert after[-1] - after[0] < MOST_BYTES, after / 2**20

"""The code of docs/training.md runs, on a small cache, and its trainers see every clip once an epoch."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import latentcache
from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.format.shards.protocol import ArrayLayout
from tests.tools.caches import ROOT
from tests.tools.ranks import run_ranks
from tests.tools.synthetic import write_cache

pytestmark = pytest.mark.slow

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/training.md").read_text(), re.M | re.S)
#: Whole programs start with their names; everything else is a part of one.
SCRIPTS = {m[1]: block for block in BLOCKS if (m := re.match(r"# (\w+)\.py", block))}
PARTS = [block for block in BLOCKS if block not in SCRIPTS.values()]
URL = "s3://bucket/latents"
#: Four batches of 8, which go round for one process and for two.
NUM_CLIPS = 32
NUM_EPOCHS = 2

MODEL = '''
import os
import torch

class Model(torch.nn.Module):
    """Writes down which clips it has seen."""

    def __init__(self, channels):
        super().__init__()
        self.layer = torch.nn.Linear(channels, 1)

    def forward(self, latents, captions):
        assert len(captions) == len(latents)
        with open(f"seen-{os.environ['RANK']}", "a") as file:
            file.writelines(f"{sample[0].mean():.0f}\\n" for sample in latents)
        return self.layer(latents.float().movedim(1, -1)).square().mean()

def make_model(channels):
    return Model(channels)
'''


def make_latents(layout: ArrayLayout, rng: np.random.Generator, place: int) -> Array:
    """The number of the clip, everywhere; the normaliser leaves the first channel as it is."""
    return np.full(layout.shape, place, numpy_dtype(layout.dtype))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("docs") / "cache")
    return write_cache(path, buckets={"5x32x32": NUM_CLIPS}, make=make_latents).url


def run_script(path: Path) -> None:
    sys.path.insert(0, str(path.parent))
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # as accelerate launch --cpu does
    with (path.parent / "printed").open("w") as file:
        sys.stdout = sys.stderr = file
        runpy.run_path(str(path), run_name="__main__")


def needed(name: str) -> list[str]:
    return [
        lib
        for lib in ("accelerate", "lightning")
        if f"import {lib}" in SCRIPTS[name] or f"from {lib}" in SCRIPTS[name]
    ]


def assert_sees_every_clip(name: str, num: int, url: str, folder: Path, monkeypatch) -> None:
    for lib in needed(name):
        if importlib.util.find_spec(lib) is None:
            pytest.skip(f"{lib} is not installed")
    (folder / "model.py").write_text(MODEL)
    path = folder / f"{name}.py"
    assert URL in SCRIPTS[name]
    path.write_text(SCRIPTS[name].replace(URL, url))
    monkeypatch.chdir(folder)
    run_ranks(num, run_script, path)
    seen = [list(map(int, seen.read_text().split())) for seen in sorted(folder.glob("seen-*"))]
    assert len(seen) == num
    length = NUM_CLIPS // num
    epochs = [
        list(itertools.chain(*(s[e * length : (e + 1) * length] for s in seen)))
        for e in range(NUM_EPOCHS)
    ]
    assert [sorted(epoch) for epoch in epochs] == [list(range(NUM_CLIPS))] * NUM_EPOCHS
    assert epochs[0] != epochs[1]
    run_ranks(num, run_script, path)
    again = [list(map(int, seen.read_text().split())) for seen in sorted(folder.glob("seen-*"))]
    assert again == seen, "a run that is over goes on"


@pytest.mark.parametrize(
    ("name", "num"),
    [
        pytest.param("train", 1, marks=pytest.mark.long),
        ("train_ddp", 2),
        pytest.param("train_fsdp", 2, marks=pytest.mark.long),
        pytest.param("train_accelerate", 1, marks=pytest.mark.long),
        pytest.param("train_lightning", 1, marks=pytest.mark.long),
    ],
)
def test_a_script_sees_every_clip_once_an_epoch_and_goes_on(
    name: str, num: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_sees_every_clip(name, num, url, tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("name", ["train_accelerate", "train_lightning"])
def test_a_script_of_a_framework_divides_the_clips_among_two_processes(
    name: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_sees_every_clip(name, 2, url, tmp_path, monkeypatch)


def run_parts(url: str) -> None:
    """Run the parts one after another, with what they take as given."""
    # A run that the trainer began; the package itself is no requirement of the tests.
    sys.modules["wandb"] = SimpleNamespace(run=SimpleNamespace(log=lambda figures, **options: None))
    given = {
        "LatentLoader": latentcache.LatentLoader,
        "StatefulDataLoader": StatefulDataLoader,
        "torch": torch,
        "train": lambda latents, captions: None,
        "url": url,
        "url_a": url,
        "url_b": url,
        "epoch": 1,
        "generated": torch.zeros(1, 4, 2, 4, 4),
        "num_epochs": 1,
        "rank": 0,
        "world_size": 1,
    }
    for part in PARTS:
        exec(compile(part.replace(URL, url), "docs/training.md", "exec"), given)


@pytest.mark.long
def test_the_other_parts_run(url: str) -> None:
    assert len(SCRIPTS) == 5
    run_ranks(1, run_parts, url)

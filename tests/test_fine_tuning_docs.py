"""docs/fine-tuning.md: its configurations make caches, and examples/fine_tune trains on them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml

import latentcache
from tests.tools.caches import make_config, run_inline
from tests.tools.doc_blocks import PAGES, ROOT, blocks
from tests.tools.encoders.hashed_text import WIDTH
from tests.tools.fields import add, cache_of, text_field
from tests.tools.texts.checkpoints import PARTS, save, seeded
from tests.tools.texts.towers import TINY as TOWERS
from tests.tools.tiny_models import save as save_vae
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.slow
FOLDER = ROOT / "examples" / "fine_tune"
NUM_CLIPS, FRAMES = 3, 9
#: By script: the tiny autoencoder, the text encoders, the transformer's class and its settings, a size.
WAN: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "freq_dim": 32,
    "ffn_dim": 32, "num_layers": 1,
}  # fmt: skip
WAN_I2V = {"in_channels": 36, "out_channels": 16, "image_dim": 32, "added_kv_proj_dim": 32}
COGVIDEOX: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 8, "text_embed_dim": 32,
    "num_layers": 1, "sample_width": 12, "sample_height": 8, "sample_frames": 9,
    "use_rotary_positional_embeddings": True,
}  # fmt: skip
HUNYUAN: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1, "num_single_layers": 1,
    "num_refiner_layers": 1, "text_embed_dim": 32, "pooled_projection_dim": 16,
    "rope_axes_dim": (2, 4, 4),
}  # fmt: skip
LTX: dict[str, Any] = {
    "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8,
    "cross_attention_dim": 16, "num_layers": 1, "caption_channels": 32,
}  # fmt: skip
MODELS: Mapping[str, tuple[str, str, str, dict[str, Any], list[int]]] = {
    "wan": ("wan", "wan", "WanTransformer3DModel", {**WAN, **WAN_I2V}, [64, 96]),
    "cogvideox": (
        "cogvideox", "cogvideox", "CogVideoXTransformer3DModel",
        {**COGVIDEOX, "in_channels": 32, "out_channels": 16}, [64, 96],
    ),
    "hunyuan": ("hunyuan", "hunyuan_video", "HunyuanVideoTransformer3DModel", HUNYUAN, [64, 96]),
    "ltx": ("ltx", "ltx", "LTXVideoTransformer3DModel", LTX, [64, 96]),
}  # fmt: skip


def transformer(class_name: str, settings: Mapping[str, Any]) -> Any:
    return seeded(lambda: getattr(diffusers, class_name)(**settings))


def configuration(name: str) -> dict[str, Any]:
    """The page's configuration of a model."""
    sections = [
        yaml.safe_load(block.text) for block in blocks(PAGES["docs/fine-tuning.md"], "yaml")
    ]
    return dict(zip(MODELS, sections, strict=True))[name]


def make_model(name: str, folder: Path) -> None:
    """Save a tiny pipeline with all the parts that the page's configuration and the script load."""
    vae, texts, class_name, settings, _ = MODELS[name]
    parts = {**PARTS[texts](), "transformer": transformer(class_name, settings)}
    save(folder, parts)
    save_vae(vae, folder / "vae")
    if name == "wan":
        TOWERS["wan_clip"](folder)
    if name == "cogvideox":
        diffusers.CogVideoXDPMScheduler(
            rescale_betas_zero_snr=True, prediction_type="v_prediction"
        ).save_pretrained(folder / "scheduler")


def make_cache(name: str, folder: Path) -> Path:
    """Encode short videos by the page's configuration; returns the folder of the model."""
    page = configuration(name)
    model = folder / page["encoder"]["model"]
    make_model(name, model)
    (folder / "clips").mkdir()
    for n in range(NUM_CLIPS):
        path = folder / "clips" / f"v{n}.mp4"
        write_video(path, moving_pattern(48, 64, 96, seed=n), fps=24)
        path.with_suffix(".txt").write_text(f"a dog {'runs ' * n}")
    clips = {**page["clips"], "frames": FRAMES, "size": MODELS[name][-1]}
    encoder = {**page["encoder"], "dtype": "float32"}  # half precision is slow on a CPU
    config = make_config(
        folder, folder / "clips", "cache", clips={**clips, "select": "first"}, encoder=encoder,
        fields=page["fields"], cache={"shard_clips": NUM_CLIPS},
    )  # fmt: skip
    status, printed = run_inline("precompute", config)
    assert status == 0, printed
    return model


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *args: object) -> dict[str, Any]:
    """Run a script in this process; returns its names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def assert_trains_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, name: str, cache: object, model: Path
) -> None:
    """Four steps with a stop after two, in the middle of an epoch, end as four without one."""
    words = (name, cache, model)
    run_script(monkeypatch, *words, "whole", "--steps", 4, "--batch-size", 2, "--lr", 1e-3)
    for steps in (3, 4):
        run_script(monkeypatch, *words, "parts", "--steps", steps, "--batch-size", 2, "--lr", 1e-3)
    whole, parts = (torch.load(f"{out}/state.pt")[1] for out in ("whole", "parts"))
    before = torch.load("untrained.pt")
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    assert any(not torch.equal(value, before[key]) for key, value in whole.items())
    assert all(value.isfinite().all() for value in whole.values())


def losses(monkeypatch: pytest.MonkeyPatch, name: str, model: Path) -> Callable[..., float]:
    """Return a function of a batch: the script's loss, always with the same noise and times."""
    monkeypatch.syspath_prepend(str(FOLDER))
    built, _, loss = runpy.run_path(str(FOLDER / f"{name}.py"))["build"](model)
    for parameter in built.parameters():  # what a fresh model leaves at zero would hide conditions
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def of(batch: dict[str, Any]) -> float:
        return float(loss(built.eval(), batch, torch.Generator().manual_seed(0)))

    return of


def assert_conditions_count(
    monkeypatch: pytest.MonkeyPatch, name: str, cache: object, model: Path
) -> None:
    """Another condition gives another loss; what the mask hides does not."""
    names = list(configuration(name)["fields"])
    loader = latentcache.LatentLoader(str(cache), 2, fields=names, columns=["fps"], dtype="float32")
    batch, loss = next(iter(loader)), losses(monkeypatch, name, model)
    given = loss(batch)
    assert loss(batch) == given
    for key in names + [f"{n}.pooled" for n in names if f"{n}.pooled" in batch]:
        other = batch[key].clone().roll(1, dims=0)
        assert loss({**batch, key: other}) != given, key
    if "text_mask" in batch:
        hidden = batch["text"] + 9 * ~batch["text_mask"][..., None]
        assert loss({**batch, "text": hidden}) == pytest.approx(given, rel=1e-5)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MODELS)
def test_a_script_trains_on_a_cache_of_the_pages_configuration(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_cache(name, tmp_path)
    torch.save(transformer(*MODELS[name][2:4]).state_dict(), "untrained.pt")
    assert_trains_and_goes_on(monkeypatch, name, "cache", model)
    assert_conditions_count(monkeypatch, name, "cache", model)


def test_wan_trains_on_text_states_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(tmp_path, ["one", "two", "three"])
    add(cache, text=text_field())
    monkeypatch.chdir(tmp_path)
    built = transformer("WanTransformer3DModel", {**WAN, "text_dim": WIDTH})
    save(Path("model"), {"transformer": built})
    torch.save(built.state_dict(), "untrained.pt")
    assert_trains_and_goes_on(monkeypatch, "wan", cache.storage.url, Path("model"))


@pytest.mark.parametrize("name", MODELS)
def test_a_script_is_short(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 60


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_train_for_200_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_cache(name, tmp_path)
    script, steps = str(FOLDER / f"{name}.py"), 200
    words = [script, "cache", str(model), "out", "--steps", str(steps), "--lr", "3e-3"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if "loss" in line]
    assert len(losses) == steps
    assert np.mean(losses[-50:]) < np.mean(losses[:50])
    step, trained, *_ = torch.load("out/state.pt")
    assert step == steps
    assert all(value.isfinite().all() for value in trained.values())

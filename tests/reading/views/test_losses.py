"""Equal losses from the same seeds: on what a cache gives, and on what a published trainer's data gave.

Each trainer's loss is restated over a tiny model whose weights, noise and masks follow from a seed. Its
inputs come once from a batch of the loader and once from `tests/data/trainers`. That each input counts is
shown by changing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, embedding, mse_loss, pad

from latentcache import FieldArray, open_cache, write_field
from latentcache.core.spec import Normaliser
from tests.reading.views.test_published_trainers import (
    LATENTS,
    cache_with_quantiser,
    numbers,
)
from tests.tools.discrete_models import save_var, save_videogpt
from tests.tools.published import Published
from tests.tools.synthetic import make_spec
from tests.tools.trainers import FOLDER, Trainer, cache_of, ids_spec, per_frame, run

#: Inputs of a loss by name.
Inputs = Mapping[str, torch.Tensor]
WIDTH = 12


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embedded(ids: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """Vectors of ids [..., WIDTH]."""
    return embedding(ids % 97, noise(97, WIDTH, seed=seed))


def logits(vectors: torch.Tensor, num: int = 97) -> torch.Tensor:
    return torch.tanh(vectors) @ noise(vectors.shape[-1], num, seed=2)


def past(vectors: torch.Tensor) -> torch.Tensor:
    """What a causal model knows at each place of [B, L, D]: the mean of those before, none at first."""
    mean = vectors.cumsum(1) / torch.arange(1, vectors.shape[1] + 1)[:, None]
    return pad(mean[:, :-1], (0, 0, 1, 0))


def likelihood(vectors: torch.Tensor, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Cross-entropy of ids [...] under a model's vectors [..., D]."""
    return cross_entropy(logits(vectors).flatten(0, -2), ids.flatten() % 97, **options)


def hidden_like(ids: torch.Tensor) -> torch.Tensor:
    return torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.5


def of_next_tokens(given: Inputs) -> torch.Tensor:
    """VideoGPT: each id from the vectors of those before."""
    return likelihood(past(given["x"].flatten(1, 3)), given["targets"].flatten(1))


def of_scales(given: Inputs) -> torch.Tensor:
    """VAR: each id of a scale from all that is known before the scale, every token with the same weight."""
    known = past(pad(given["x_BLCv_wo_first_l"], (0, 0, 1, 1)))[:, 1:]
    per_token = likelihood(known, given["gt_BL"], reduction="none")
    return per_token.view(given["gt_BL"].shape).mean(1).mean()


def of_masked_windows(given: Inputs) -> torch.Tensor:
    """1xgpt: masked ids of all frames but the first, from the rest of the window."""
    hidden = hidden_like(given["labels"])
    hidden[:, : hidden.shape[1] // 4] = False
    seen = embedded(given["input_ids"].masked_fill(hidden, 96))
    return likelihood((seen + seen.mean(1, keepdim=True))[hidden], given["labels"][hidden])


def of_masked_images(given: Inputs) -> torch.Tensor:
    """Halton-MaskGIT: ids from what its masks left, with smooth labels."""
    seen = embedded(given["masked"]).flatten(1, 2)
    known = seen + seen.mean(1, keepdim=True)
    return likelihood(known, given["code"].flatten(1), label_smoothing=0.1)


def of_masked_pictures(given: Inputs) -> torch.Tensor:
    """Muse: masked ids from the others and from the small picture."""
    hidden = given["hidden"] > 0
    seen = embedded(given["ids"].flatten(1).masked_fill(hidden, 96))
    small = embedded(given["cond_token_ids"], seed=4).flatten(1, 2)
    small = (small * noise(*small.shape[1:], seed=6)).mean(1, keepdim=True)
    return likelihood((seen + small)[hidden], given["ids"].flatten(1)[hidden])


def of_actions(given: Inputs) -> torch.Tensor:
    """TECO: each frame's ids from the frame before and its action."""
    frames = embedded(given["video"]).mean((2, 3))  # [B, T, D]
    known = frames[:, :-1] + embedded(given["actions"][:, 1:], seed=4)
    num = given["video"][0, 0].numel()
    return likelihood(known[:, :, None].expand(-1, -1, num, -1), given["video"][:, 1:].flatten(2))


def of_crops(given: Inputs) -> torch.Tensor:
    """Perceiver AR: each next token from the tokens and positions up to it; none where padding is."""
    places = embedded(given["event_idxs"], seed=4).sum(-2)
    known = past(pad(embedded(given["events"]) + places, (0, 0, 0, 1)))[:, 1:]
    real = given["targets"] > 0
    return likelihood(known[real], given["targets"][real])


def of_noise(latents: torch.Tensor, known: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Squared error of the noise that a model finds in noisy latents [..., D], per element."""
    added = noise(*latents.shape, seed=5)
    found = torch.tanh(0.8 * latents + 0.6 * added + known)
    return mse_loss(found, added, reduction="none")


def of_frames(given: Inputs) -> torch.Tensor:
    """FDM: noise of the frames to generate, beside those that are observed, at their places."""
    latents, generate = given["latents"], given["latent_mask"]
    place = torch.sin(given["frame_indices"].float())[:, :, None, None, None]
    seen = (latents * given["obs_mask"]).mean(1, keepdim=True)
    return (of_noise(latents, place + seen) * generate).sum() / generate.sum()


def of_scaled_latents(given: Inputs) -> torch.Tensor:
    """CogVideo's SAT trainer: noise of what reaches its model, [B, t, C, h, w]."""
    return of_noise(given["model"]).mean()


def of_steps(given: Inputs) -> torch.Tensor:
    """Null text: each step's latent from the one before, by its embedding and score."""
    weighted = given["embedding"] * noise(*given["embedding"].shape[1:], seed=6)
    known = weighted.mean((1, 2, 3))[:, None, None, None, None]
    made = torch.tanh(given["reference"] + known + given["stdg"])
    return mse_loss(made, given["target"])


def videogpt(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    cache = cache_with_quantiser(folder, save_videogpt(folder), of_8x16x16=published["targets"])
    (batch,) = run("videogpt", cache)
    return batch, {name: published[name][numbers(batch)] for name in ("x", "targets")}


def var(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    cache = cache_with_quantiser(folder, save_var(folder), of_1x64x64=Published.load("var").ids)
    (batch,) = run("var", cache)
    names = ("gt_BL", "x_BLCv_wo_first_l")
    return batch, {name: published[name][numbers(batch)] for name in names}


def genie(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    clips = {"of_9x16x16": published["long"], "of_6x16x16": published["short"]}
    batches = run("genie", cache_of(folder, **clips), frames=4)
    ours = {
        name: torch.tensor(sorted(row for batch in batches for row in batch[name].tolist()))
        for name in ("input_ids", "labels")
    }
    theirs = torch.tensor(sorted(published["input_ids_4_1"].tolist()))
    return ours, {"input_ids": theirs, "labels": theirs}


def maskgit(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    seed, code, masked = (published[name][0] for name in ("seeds", "code", "masked"))
    cache = cache_of(folder, ids_spec(1 << 14), of_1x32x48=code[:, None])
    (batch,) = run("maskgit", cache, seed=int(seed))
    shown = code[numbers(batch)]  # theirs in our order: its masks belong to places of a batch
    return batch, {"code": shown, "masked": torch.where(masked == 1 << 14, masked, shown)}


def muse(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    cache = cache_of(folder / "large", of_1x32x32=published["large"][:, None])
    spec = ids_spec(stride=16)
    small = cache_of(folder / "small", spec, of_1x32x32=published["small"][:, None])
    (batch,) = run("muse", cache, open_cache(small.url))
    hidden = published["x"] == published["mask_id"]
    ids = torch.where(hidden, published["labels"], published["x"])
    theirs = {
        "ids": ids.view(-1, *published["large"].shape[1:]),
        "cond_token_ids": published["conditioning_token_ids"],
        "hidden": hidden.long(),
    }
    theirs = {name: tensor[numbers(batch)] for name, tensor in theirs.items()}
    return {**batch, "hidden": theirs["hidden"]}, theirs


def teco(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    cache = cache_of(folder, of_9x16x16=published["ids"].repeat(64, 1, 1, 1), actions=True)
    ours = {
        (int(key[-4:]) % 2, int(frames[0])): (video, actions)
        for batch in run("teco", cache, frames=4)
        for key, frames, video, actions in zip(
            batch["key"], batch["frame_indices"], batch["video"], batch["actions"], strict=True
        )
    }
    cuts = [ours[clip, start] for clip, start in published["places"].tolist()]
    names = ("video", "actions")
    stacked = (torch.stack(parts) for parts in zip(*cuts, strict=True))
    return dict(zip(names, stacked, strict=True)), {n: published[n].long() for n in names}


def perceiver_ar(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    cache = cache_of(folder, of_4x16x24=published["ids"].repeat(128, 1, 1, 1))
    names = ("events", "targets", "event_idxs")
    ours = {
        str(events.tolist()): (events, targets, places)
        for batch in run("perceiver_ar", cache, context=7, shortest=3)
        for events, targets, places in zip(*(batch[name] for name in names), strict=True)
    }
    crops = [ours[str(events.tolist())] for events in published["short_inputs"]]
    stacked = (torch.stack(parts) for parts in zip(*crops, strict=True))
    parts = ("inputs", "targets", "input_idxs")
    theirs = {n: published[f"short_{part}"].long() for n, part in zip(names, parts, strict=True)}
    # Theirs keeps a position behind a short crop's inputs, where no token is.
    theirs["event_idxs"] = theirs["event_idxs"] * (theirs["events"] > 0)[..., None]
    return dict(zip(names, stacked, strict=True)), theirs


def fdm(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    """The frames that the draw chose: theirs fills up with another clip's, ours with zeros."""
    num = int(published["num_chosen"][0, 0])
    names = ("frame_indices", "obs_mask", "latent_mask")
    theirs = {name: published[name][0, :1, :num] for name in names}
    theirs["latents"] = published["batch"][0, :1, :num].float()
    places = theirs["frame_indices"].flatten()
    chosen = [places[theirs[name].flatten() > 0].tolist() for name in names[1:]]
    latents = published["clips"][0].transpose(0, 1)[None]
    cache = cache_of(folder, per_frame(LATENTS), of_30x16x16=latents)
    (batch,) = run("fdm", cache, choose=lambda *_: chosen)
    return {name: batch[name][:, :num] for name in theirs}, theirs


def cogvideo(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    cache = cache_of(folder, make_spec("float32"), of_9x16x16=published["mp4"])
    (batch,) = run("cogvideo_sat", cache)
    scaled = batch["mp4"] * published["scale_5b"].float()  # as the model does with what it gets
    return {"model": scaled.transpose(1, 2).contiguous()}, {
        "model": published["model_5b"][numbers(batch)]
    }


def video_director(folder: Path, published: Trainer) -> tuple[Inputs, Inputs]:
    trajectory = published["trajectory"][:, 0]  # [S + 1, C, t, h, w], clean to noisy
    scores, embeddings = published["scores"][:, 0], published["embeddings"]
    made = {"z": trajectory, "stdg": scores, "embedding": embeddings}
    spec = per_frame(replace(make_spec("float32"), normaliser=Normaliser()))
    cache = open_cache(cache_of(folder, spec, of_3x16x16=trajectory[:1]).url)
    for name, steps in made.items():
        array = FieldArray(name="", shape=tuple(steps.shape), dtype="float32", rule="by_step")
        write_field(cache, name, lambda _, n=name: {n: made[n]}, arrays=array, recipe={})
    (key,) = cache.keys()
    read = {name: cache.steps(name, key) for name in made}
    num = len(scores)
    ours = {
        "reference": torch.stack([read["z"][num - i] for i in range(num)]),
        "target": torch.stack([read["z"][num - i - 1] for i in range(num)]),
        **{
            name: torch.stack([read[name][i] for i in range(num)]) for name in ("stdg", "embedding")
        },
    }
    target, reference = trajectory[published["reads"][2:].view(num, 2)].unbind(1)
    return ours, {
        "reference": reference,
        "target": target,
        "stdg": scores,
        "embedding": embeddings,
    }


@dataclass(frozen=True)
class System:
    """given: both trainers' inputs, ours first. rtol: 0, unless theirs rounds otherwise on its way."""

    given: Callable[[Path, Trainer], tuple[Inputs, Inputs]]
    loss: Callable[[Inputs], torch.Tensor]
    rtol: float = 0.0


SYSTEMS = {
    "videogpt": System(videogpt, of_next_tokens, 1e-5),  # its vectors are straight-through
    "var": System(var, of_scales, 1e-5),
    "genie": System(genie, of_masked_windows),
    "maskgit": System(maskgit, of_masked_images),
    "muse": System(muse, of_masked_pictures),
    "teco": System(teco, of_actions),
    "perceiver_ar": System(perceiver_ar, of_crops),
    "fdm": System(fdm, of_frames),
    "cogvideo": System(cogvideo, of_scaled_latents),
    "video_director": System(video_director, of_steps),
}


def test_every_stored_trainer_has_a_loss() -> None:
    """But for rCM, whose step trains on what it encodes again: see tests/exchange/test_rcm_published.py."""
    assert {*SYSTEMS, "rcm"} == {path.stem for path in FOLDER.glob("*.npz")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_are_equal(name: str, tmp_path: Path) -> None:
    system = SYSTEMS[name]
    ours, theirs = system.given(tmp_path, Trainer.load(name))
    loss = system.loss(theirs)
    assert loss.isfinite()
    torch.testing.assert_close(system.loss(ours), loss, rtol=system.rtol, atol=0.0)
    for part, tensor in theirs.items():
        assert tensor.shape == ours[part].shape
        assert tensor.dtype == ours[part].dtype
        # A loss that does not see an input would be equal whatever the cache gives.
        others = (tensor.flip(axis) for axis in range(1, tensor.ndim))
        assert any(system.loss({**theirs, part: other}) != loss for other in others), part

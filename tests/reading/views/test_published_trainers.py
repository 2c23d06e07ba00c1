"""What published trainers make of known inputs comes from a cache: see `tests.tools.trainers`.

Where theirs draws, ours draws by itself: then the same draws give the same tensors, and no others come.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from latentcache import FieldArray, LatentLoader, encoders, open_cache, write_field
from latentcache.core.spec import Normaliser
from tests.tools.caches import make_config, run_inline
from tests.tools.discrete_models import save_var, save_videogpt
from tests.tools.published import Published, pixels
from tests.tools.synthetic import Synthetic, make_spec
from tests.tools.trainers import (
    FOLDER,
    Trainer,
    cache_of,
    ids_spec,
    per_frame,
    rows_of,
    run,
    with_quantiser,
)
from tests.tools.videos import write_video

#: Of an encoder of single frames with two channels.
LATENTS = replace(make_spec("float32", channels=2), normaliser=Normaliser())


def cache_with_quantiser(folder: Path, raw: dict[str, Any], **clips: torch.Tensor) -> Synthetic:
    """Write a cache of known ids of an encoder."""
    module, config = encoders.resolve(raw)
    spec = module.describe(config, dtype="float32")
    cache = cache_of(folder / "cache", replace(spec, encoder=make_spec().encoder), **clips)
    return with_quantiser(cache, module.quantiser(config))  # type: ignore[attr-defined]


def numbers(batch: dict[str, Any]) -> list[int]:
    """Return the place of each sample of a batch among the clips of its bucket."""
    return [int(key[-4:]) for key in batch["key"]]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.npz")))
def test_each_file_says_whose_code_gave_it(name: str) -> None:
    about = Trainer.load(name).about
    assert about["repository"].startswith("github.com/")
    assert len(about["commit"]) == 40
    assert about["called"]


class TestGenie:
    @pytest.mark.parametrize(("frames", "step"), [(4, 1), (3, 2)])
    def test_every_window_comes_once(self, frames: int, step: int, tmp_path: Path) -> None:
        published = Trainer.load("genie")
        clips = {"of_9x16x16": published["long"], "of_6x16x16": published["short"]}
        batches = run("genie", cache_of(tmp_path, **clips), frames=frames, step=step)
        found = sorted(ids for batch in batches for ids in batch["input_ids"].tolist())
        assert found == sorted(published[f"input_ids_{frames}_{step}"].tolist())
        assert all(torch.equal(batch["input_ids"], batch["labels"]) for batch in batches)

    def test_their_data_set_finds_the_same_in_what_is_exported(self, tmp_path: Path) -> None:
        """Their starts are those of windows within one segment of our files."""
        published = Trainer.load("genie")
        clips = {"of_9x16x16": published["long"], "of_6x16x16": published["short"]}
        cache = cache_of(tmp_path / "cache", **clips)
        status, printed = run_inline("export", cache.url, tmp_path / "out", "--to", "memmap")
        assert status == 0, printed
        ids = np.fromfile(tmp_path / "out" / "video.bin", "<u4").reshape(-1, 2, 2)
        segments = np.fromfile(tmp_path / "out" / "segment_ids.bin", "<i4")
        expected = torch.cat([published["short"].flatten(0, 1), published["long"].flatten(0, 1)])
        assert ids.tolist() == expected.tolist()
        starts = [n for n in range(len(ids) - 3) if segments[n] == segments[n + 3]]
        assert starts == published["starts_4_1"].tolist()


def test_maskgit_takes_codes_and_the_masks_of_its_seeds(tmp_path: Path) -> None:
    published, codes = Trainer.load("maskgit"), 1 << 14
    for seed, code, masked in zip(
        published["seeds"].tolist(), published["code"], published["masked"], strict=True
    ):
        cache = cache_of(tmp_path / str(seed), ids_spec(codes), of_1x32x48=code[:, None])
        (batch,) = run("maskgit", cache, seed=seed)
        assert torch.equal(batch["code"], code[numbers(batch)])
        hidden = masked == codes  # drawn for a place in a batch, whichever picture is there
        assert torch.equal(batch["masked"] == codes, hidden)
        assert torch.equal(batch["masked"][~hidden], batch["code"][~hidden])


def test_muse_takes_both_grids_of_a_picture(tmp_path: Path) -> None:
    published = Trainer.load("muse")
    cache = cache_of(tmp_path / "large", of_1x32x32=published["large"][:, None])
    small = cache_of(
        tmp_path / "small", ids_spec(stride=16), of_1x32x32=published["small"][:, None]
    )
    (batch,) = run("muse", cache, open_cache(small.url))
    # Their step masks ids, and its labels are the ids that it masked.
    masked = published["x"] == published["mask_id"]
    ids = torch.where(masked, published["labels"], published["x"])
    assert torch.equal(batch["ids"].flatten(1), ids[numbers(batch)])
    assert torch.equal(batch["cond_token_ids"], published["conditioning_token_ids"][numbers(batch)])


@pytest.mark.slow
def test_fdm_takes_the_frames_that_its_draw_chose(tmp_path: Path) -> None:
    """The rest of theirs are frames of another clip, whose masks are those of its places in this one."""
    published = Trainer.load("fdm")
    names = ("frame_indices", "obs_mask", "latent_mask")
    for clip in range(published["frame_indices"].shape[1]):
        latents = published["clips"][clip].transpose(0, 1)[None]
        cache = cache_of(tmp_path / f"{clip}", per_frame(LATENTS), of_30x16x16=latents)
        for seed, num in enumerate(published["num_chosen"][:, clip].tolist()):
            theirs = {name: published[name][seed, clip, :num] for name in names}
            chosen = [
                theirs["frame_indices"][theirs[name].flatten() > 0].tolist() for name in names[1:]
            ]
            (batch,) = run("fdm", cache, choose=lambda *_, chosen=chosen: chosen)
            for name in names:
                assert torch.equal(batch[name][0, :num], theirs[name]), name
                assert not batch[name][0, num:].any()
            frames = published["batch"][seed, clip, :num]
            assert torch.equal(batch["latents"][0, :num], frames.float())


@pytest.mark.slow
def test_teco_takes_cuts_of_ids_and_actions(tmp_path: Path) -> None:
    published = Trainer.load("teco")
    # As many clips as draws: each of theirs 64 times.
    cache = cache_of(tmp_path, of_9x16x16=published["ids"].repeat(64, 1, 1, 1), actions=True)
    batches = run("teco", cache, frames=4)
    ours = {
        (int(key[-4:]) % 2, frames[0]): (ids, actions)
        for key, frames, ids, actions in rows_of(batches, "frame_indices", "video", "actions")
    }
    cuts = zip(published["video"].tolist(), published["actions"].tolist(), strict=True)
    theirs = dict(zip(map(tuple, published["places"].tolist()), cuts, strict=True))
    assert {place: ours[place] for place in theirs} == theirs
    assert {start for _, start in ours} == {start for _, start in theirs}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shortest"), [("whole", 7), ("short", 3)])
def test_perceiver_ar_takes_crops_from_the_same_places(
    name: str, shortest: int, tmp_path: Path
) -> None:
    published = Trainer.load("perceiver_ar")
    cache = cache_of(tmp_path, of_4x16x24=published["ids"].repeat(128, 1, 1, 1))
    parts = ("inputs", "targets", "input_idxs", "input_length")
    crops = {part: published[f"{name}_{part}"] for part in parts}
    # Theirs keeps a position behind a short crop's inputs: it cuts off their last, but not its position.
    crops["input_idxs"] = crops["input_idxs"] * (crops["inputs"] > 0)[..., None]
    theirs = set(zip(*(map(str, crops[part].tolist()) for part in parts), strict=True))
    batches = run("perceiver_ar", cache, context=7, shortest=shortest)
    names = ("events", "targets", "event_idxs", "input_length")
    ours = {tuple(map(str, found)) for _, *found in rows_of(batches, *names)}
    assert theirs <= ours
    lengths = {length for *_, length in theirs}
    assert {length for *_, length in ours} == lengths


def test_crops_that_are_whole_are_those_without_shortest(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, of_4x16x24=Trainer.load("perceiver_ar")["ids"])
    (short,) = run("perceiver_ar", cache, context=7, shortest=7)
    (whole,) = run("perceiver_ar", cache, context=7)
    assert torch.equal(short["events"], whole["events"])
    assert torch.equal(short["input_length"], whole["start"] + 8)


@pytest.mark.parametrize("model", ["2b", "5b"])
def test_cogvideo_sat_takes_latents_that_it_scales(model: str, tmp_path: Path) -> None:
    """Its model sees the latents times its factor, T before C: what our normalised latents are."""
    published = Trainer.load("cogvideo")
    normaliser = Normaliser(kind="scale", scale=(published[f"scale_{model}"].item(),))
    spec = replace(make_spec("float32"), normaliser=normaliser)
    cache = cache_of(tmp_path, spec, of_9x16x16=published["mp4"])
    (batch,) = run("cogvideo_sat", cache)
    assert torch.equal(batch["mp4"], published["mp4"][numbers(batch)])
    assert batch["num_frames"].tolist() == [9, 9]
    assert batch["fps"].tolist() == [8.0, 8.0]
    assert all(isinstance(text, str) for text in batch["txt"])
    (seen,) = LatentLoader(cache.url, shuffle=False, layout="BTCHW")
    assert torch.equal(seen["latents"], published[f"model_{model}"])


def test_videogpt_takes_ids_and_their_vectors(tmp_path: Path) -> None:
    published = Trainer.load("videogpt")
    cache = cache_with_quantiser(tmp_path, save_videogpt(tmp_path), of_8x16x16=published["targets"])
    (batch,) = run("videogpt", cache)
    assert torch.equal(batch["targets"], published["targets"][numbers(batch)])
    # Theirs are straight-through: latents plus what they lack of the code.
    theirs = published["x"][numbers(batch)]
    torch.testing.assert_close(batch["x"], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_var_takes_ids_and_what_its_transformer_is_fed(tmp_path: Path) -> None:
    published = Trainer.load("var")
    assert torch.equal(published["gt_BL"], Published.load("var").ids.long())
    cache = cache_with_quantiser(tmp_path, save_var(tmp_path), of_1x64x64=published["gt_BL"])
    (batch,) = run("var", cache)
    assert torch.equal(batch["gt_BL"], published["gt_BL"][numbers(batch)])
    theirs = published["x_BLCv_wo_first_l"][numbers(batch)]
    torch.testing.assert_close(batch["x_BLCv_wo_first_l"], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.long
def test_videogpt_takes_ids_vectors_and_frames_of_a_run_on_videos(tmp_path: Path) -> None:
    """From lossless files of the target size to what the published training step has of its own pixels."""
    published = Trainer.load("videogpt")
    corpus = tmp_path / "corpus.jsonl"
    rows = []
    for n, clip in enumerate(pixels(*published["pixels"].tolist())):
        path = write_video(tmp_path / f"{n}.mkv", clip.numpy(), codec="ffv1", pix_fmt="bgr0")
        rows.append({"video": path.name, "label": published["label"][n].item()})
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        corpus={"keep": ["label"]},
        clips={"frames": 8, "size": [16, 16]},
        fields={"pixels": {"kind": "raw", "of": "clip"}},
    )
    written = {**yaml.safe_load(config.read_text()), "encoder": save_videogpt(tmp_path)}
    config.write_text(yaml.safe_dump(written))
    status, printed = run_inline("precompute", config)
    assert status == 0, printed
    (batch,) = run("videogpt", str(tmp_path / "cache"), cond_frames=2)
    order = [int(key.partition(".")[0]) for key in batch["key"]]
    for name in ("targets", "frame_cond", "label"):
        assert torch.equal(batch[name], published[name][order]), name
    torch.testing.assert_close(batch["x"], published["x"][order], rtol=1e-5, atol=1e-6)


def test_video_director_reads_a_trajectory_in_reverse(tmp_path: Path) -> None:
    """Its step i takes latents S - i and S - i - 1, and the rest in order, each read when it is wanted."""
    published = Trainer.load("video_director")
    trajectory = published["trajectory"][:, 0]  # [S + 1, C, t, h, w], clean to noisy
    num = len(trajectory) - 1
    made = {
        "z": trajectory,
        "stdg": published["scores"][:, 0],
        "embedding": published["embeddings"],
    }
    spec = per_frame(replace(make_spec("float32"), normaliser=Normaliser()))
    cache = open_cache(cache_of(tmp_path, spec, of_3x16x16=trajectory[:1]).url)
    for name, steps in made.items():
        array = FieldArray(name="", shape=tuple(steps.shape), dtype="float32", rule="by_step")
        write_field(cache, name, lambda _, n=name: {n: made[n]}, arrays=array, recipe={"n": num})
    key = cache.keys()[0]
    read = {name: cache.steps(name, key) for name in made}
    assert published["reads"][0] in (0, num)  # of their shape and their start
    for i in range(num):
        reference, target = num - i, num - i - 1
        assert published["reads"][2 + 2 * i : 4 + 2 * i].tolist() == [target, reference]
        # The stub of its guidance gives back the reference.
        assert torch.equal(read["z"][reference], read["stdg"][i])
        assert torch.equal(read["z"][target], trajectory[target])
        assert torch.equal(read["embedding"][i], published["embeddings"][i])

"""CogVideo's, rCM's and 1xgpt's files: read by their rules, restated here, and taken in again."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import latentcache
from latentcache.core.spec import Normaliser
from tests.exchange.conftest import CAPTIONS
from tests.tools.encoders.hashed_text import WIDTH
from tests.tools.exchange import (
    COGVIDEOX,
    NAMES,
    export,
    make_cache,
    run,
    spec_of,
    take_in,
    unmark,
)
from tests.tools.fields import add, text_field

#: A power of two: scaling and its undoing round nothing.
SCALE = Normaliser(kind="scale", scale=(0.5,))


@pytest.mark.slow
def test_cogvideo_gets_scaled_samples_and_prompts(tmp_path: Path) -> None:
    spec = dataclasses.replace(spec_of(COGVIDEOX), normaliser=SCALE)
    cache = make_cache(tmp_path, spec)
    add(cache, t5=text_field(length=24))
    out = tmp_path / "out"
    printed = export(cache, out, "cogvideo", "--text", "t5", "--model", "cogvideox1.5-t2v")
    assert "--train_resolution 5x32x48" in printed
    samples = cache.dataset(posterior="sample")
    folder = out / "cache" / "video_latent" / "cogvideox1.5-t2v" / "5x32x48"
    for source in NAMES:
        found = load_file(folder / f"{Path(source).stem}.safetensors")["encoded_video"]
        sample = samples[f"{source}#0"]
        assert torch.equal(found, sample["latents"])
        name = hashlib.sha256(sample["caption"].encode()).hexdigest()
        prompt = load_file(out / "cache" / "prompt_embeddings" / f"{name}.safetensors")
        assert torch.equal(prompt["prompt_embedding"], sample["t5"])
    again = take_in("cogvideo", out, tmp_path / "again", cache)
    assert again.spec.stored == "sample"
    for source in NAMES:
        drawn = cache.dataset(posterior="sample", normalise=False)[f"{source}#0"]["latents"]
        assert torch.equal(again.stored(f"{Path(source).stem}#0"), drawn)


@pytest.mark.slow
def test_cogvideo_may_have_a_video_in_several_sizes(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, dataclasses.replace(spec_of(COGVIDEOX), normaliser=SCALE))
    out = tmp_path / "out"
    export(cache, out, "cogvideo")
    (folder,) = (path for path in out.rglob("*x*x*") if path.is_dir())
    (folder.parent / "another").mkdir()
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder.parent / "another")
    again = take_in("cogvideo", out, tmp_path / "again", cache)
    paths = [file.relative_to(out).with_suffix("") for file in sorted(out.rglob(first.name))]
    others = [f"{file.stem}#0" for file in folder.iterdir() if file != first]
    assert sorted(again.keys()) == sorted([*map(str, paths), *others])
    assert len(paths) == 2


@pytest.mark.slow
def test_cogvideo_finds_a_prompt_by_the_line_that_it_reads_of_its_caption(tmp_path: Path) -> None:
    """`load_prompts` strips lines and leaves out empty ones."""
    cache = make_cache(tmp_path, spec_of(COGVIDEOX), captions=(" a cat ", "a dog\t", "a hen"))
    add(cache, t5=text_field(length=24))
    export(cache, tmp_path / "out", "cogvideo", "--text", "t5")
    listing = "\n".join(cache.table()["caption"].to_pylist())
    for line in (line.strip() for line in listing.splitlines() if line.strip()):
        name = hashlib.sha256(line.encode()).hexdigest()
        assert (tmp_path / "out/cache/prompt_embeddings" / f"{name}.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("caption", "said"), [("two\nlines", "several lines"), (" ", "is empty")])
def test_cogvideo_has_no_captions_that_are_no_line(tmp_path: Path, caption: str, said: str) -> None:
    cache = make_cache(tmp_path, spec_of(COGVIDEOX), captions=("a", caption, "b"))
    add(cache, t5=text_field(length=24, missing="empty"))
    printed = export(cache, tmp_path / "out", "cogvideo", "--text", "t5", status=2)
    assert said in printed
    assert NAMES[1] in printed
    export(cache, tmp_path / "out", "cogvideo")


def read_rcm(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor, str]]:
    """What rCM's `create_dataloader` finds in `shard_*.tar`, sample by sample."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("shard_*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                number, _, kind = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(number, {})[kind] = file.read()
    return [
        (
            torch.load(io.BytesIO(sample["latent.pt"]), weights_only=True),
            torch.load(io.BytesIO(sample["embed.pt"]), weights_only=True),
            sample["prompt.txt"].decode(),
        )
        for _, sample in sorted(found.items())
    ]


def test_rcm_gets_normalised_latents_states_and_prompts(
    wan: latentcache.Cache, tmp_path: Path
) -> None:
    export(wan, tmp_path / "out", "rcm", "--text", "umt5")
    found, clips = read_rcm(tmp_path / "out"), wan.dataset(posterior="mode")
    assert len(found) == len(wan)
    for number, (latents, states, prompt) in enumerate(found):
        assert torch.equal(latents, clips[number]["latents"])
        assert prompt == (CAPTIONS[number] or "")
        assert states.shape == (512, WIDTH)
        assert torch.equal(states[:24], clips[number]["umt5"])
        assert not states[24:].any()
    again = take_in("rcm", tmp_path / "out", tmp_path / "again", wan, "--dtype", "float32")
    for number, (latents, _, prompt) in enumerate(found):
        clip = again.dataset(dtype=torch.bfloat16)[f"{number:09d}#0"]
        assert torch.equal(clip["latents"], latents)
        assert clip["caption"] == prompt


def test_a_cut_tar_file_is_refused(wan: latentcache.Cache, tmp_path: Path) -> None:
    source = tmp_path / "out"
    export(wan, source, "rcm", "--text", "umt5")
    unmark(source)
    path = source / "shard_000000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    like = wan.storage.url
    printed = run("import", "rcm", source, tmp_path / "n", "--like", like, status=2)
    assert f"{path} is no whole tar file" in printed


@pytest.fixture(name="ids")
def ids_fixture(tmp_path: Path) -> latentcache.Cache:
    return make_cache(tmp_path, spec_of(stored="ids"), clips=3, sizes=((32, 32),))


def windows(folder: Path, size: int) -> list[np.ndarray]:
    """1xgpt's `RawTokenDataset`: each window whose first and last frame are of one segment."""
    facts = json.loads((folder / "metadata.json").read_text())
    shape = (facts["num_images"], facts["s"], facts["s"])
    ids = np.memmap(folder / "video.bin", facts["token_dtype"], "r", shape=shape)
    segments = np.memmap(folder / "segment_ids.bin", np.int32, "r", shape=shape[:1])
    starts = range(len(ids) - size + 1)
    return [ids[n : n + size] for n in starts if segments[n] == segments[n + size - 1]]


@pytest.mark.slow
def test_1xgpt_gets_windows_over_clips_that_follow_one_another(
    ids: latentcache.Cache, tmp_path: Path
) -> None:
    export(ids, tmp_path / "out", "memmap")
    found = windows(tmp_path / "out", 7)
    expected = []
    for source in sorted(NAMES):
        whole = np.concatenate([ids.stored(f"{source}#{n}").numpy() for n in range(3)])
        expected += [whole[n : n + 7] for n in range(len(whole) - 6)]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_ids_come_back_as_one_clip_per_segment(ids: latentcache.Cache, tmp_path: Path) -> None:
    like = dataclasses.replace(
        ids.spec, ids=dataclasses.replace(ids.spec.ids, codebook_size=1 << 32)
    )
    assert like.ids is not None
    cache = make_cache(tmp_path / "wide", like, clips=3, sizes=((32, 32),))
    export(cache, tmp_path / "out", "memmap")
    again = take_in("memmap", tmp_path / "out", tmp_path / "again", cache)
    for number, source in enumerate(sorted(NAMES)):
        whole = np.concatenate([cache.stored(f"{source}#{n}").numpy() for n in range(3)])
        np.testing.assert_array_equal(again.stored(f"{number:09d}#0").numpy(), whole)


def test_ids_beyond_the_codebook_and_wrong_lengths_are_refused(
    ids: latentcache.Cache, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(ids, out, "memmap")
    unmark(out)
    data = np.full(45 * 16, 1 << 18, "<u4").tobytes()
    (out / "video.bin").write_bytes(data)
    args = ("import", "memmap", out, tmp_path / "n", "--like", ids.storage.url)
    assert "has ids beyond the 262144" in run(*args, status=2)
    (out / "video.bin").write_bytes(data[:-1])
    assert "has not the 2880 bytes of 45 frames" in run(*args, status=2)


def test_latents_are_no_ids(wan: latentcache.Cache, tmp_path: Path) -> None:
    assert "reads ids [t, h, w]" in export(wan, tmp_path / "out", "memmap", status=2)

"""Previews: the files that are written, what is in them, and what is said about a key that is wrong."""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import latentcache
from jobs import preview as job
from latentcache.errors import ConfigError
from latentcache.format.paths import plan_path, sample_path
from latentcache.format.schemas import PLAN_SCHEMA, plan_facts
from latentcache.format.snapshot import build_index, publish
from latentcache.format.tables import to_parquet
from latentcache.inspecting import preview
from latentcache.inspecting.choose import find_places
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, make_corpus, run_job
from tests.tools.synthetic import write_cache
from tests.tools.videos import read_with_pyav

pytestmark = pytest.mark.usefixtures("kept_pools")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    corpus = make_corpus(folder / "corpus", 2)
    run_job("precompute", make_config(folder, corpus, str(folder / "cache")), status=3)
    return folder / "cache"


def look(cache: Path, output: Path, *keys: str, **changes: object) -> list[Path]:
    """Run the job in this process; return what it wrote."""
    arguments = {"device": "cpu", "sample": None, "seed": 0, "allow_encoder": []}
    arguments |= {"grid": False, "source": True, "cache": str(cache), "words": list(keys)}
    job.run(argparse.Namespace(**{**arguments, "output": str(output), **changes}))
    return sorted(output.glob("*"))


def near(a: np.ndarray, b: torch.Tensor) -> float:
    return float(np.abs(a.astype(float) - b.numpy()).mean())


@pytest.mark.slow
def test_a_clip_lies_beside_its_source_at_its_own_rate(cache: Path, tmp_path: Path) -> None:
    out, _ = run_job("preview", cache, "v0.mp4#0", "-o", tmp_path / "made")
    (path,) = (tmp_path / "made").glob("*")
    assert path.name == "v0.mp4-0.mp4"
    assert f"wrote    {path}" in out
    assert "v0.mp4#0: PSNR " in out
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 24)
    frames = read_with_pyav(path)
    decoded = latentcache.open_cache(str(cache)).decode("v0.mp4#0")
    top, gap = preview.LABEL_HEIGHT, preview.GAP
    assert frames.shape == (5, top + 2 * 64, 2 * 2 * 96 + gap, 3)  # twice as large, for the labels
    panels = frames[:, top::2, : 2 * 96 : 2], frames[:, top::2, 2 * 96 + gap :: 2]
    source = torch.from_numpy(read_with_pyav(cache.parent / "corpus" / "v0.mp4", 5))
    assert near(panels[0], source) < 6 < near(panels[0], source.flip(0))
    assert near(panels[1], decoded) < 6 < near(panels[1], decoded.flip(0))


@pytest.mark.slow
def test_an_image_is_a_png_and_the_source_can_be_left_out(cache: Path, tmp_path: Path) -> None:
    (path,) = look(cache, tmp_path / "made", "picture.png#0", source=False)
    with Image.open(path) as image:
        pixels = np.asarray(image)
    decoded = latentcache.open_cache(str(cache)).decode("picture.png#0")
    assert path.name == "picture.png-0.png"
    np.testing.assert_array_equal(pixels[preview.LABEL_HEIGHT :: 2, ::2], decoded[0].numpy())


@pytest.mark.slow
def test_a_grid_is_one_file_of_all(cache: Path, tmp_path: Path) -> None:
    (video,) = look(cache, tmp_path / "a", "v0.mp4#0", "picture.png#0", "v1.mp4#1", grid=True)
    assert video.name == "grid.mp4"
    frames = read_with_pyav(video)
    cell = (2 * preview.LABEL_HEIGHT + 2 * 64, 2 * 2 * 96 + preview.GAP)
    assert len(frames) == 5
    assert frames.shape[1] % (cell[0] + preview.GAP) <= 1
    assert frames.shape[2] % (cell[1] + preview.GAP) <= 1
    (still,) = look(cache, tmp_path / "b", "picture.png#0", grid=True)
    assert still.name == "grid.png"


@pytest.mark.slow
def test_samples_are_of_every_bucket_and_without_a_key_some_are_listed(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = look(cache, tmp_path / "made", sample=2, source=False)
    assert sorted(path.suffix for path in made) == [".mp4", ".png"]
    capsys.readouterr()
    assert look(cache, tmp_path / "none") == []
    said = capsys.readouterr().out
    assert "Name some, or add --sample N" in said
    assert "  picture.png#0\n" in said


@pytest.mark.slow
def test_a_clip_without_its_source_is_shown_alone(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = cache.parent / "corpus" / "picture.png"
    data = source.read_bytes()
    try:
        source.unlink()
        (path,) = look(cache, tmp_path / "made", "picture.png#0")
    finally:
        source.write_bytes(data)
    with Image.open(path) as image:
        assert image.width == 2 * 96
    assert "decoded without its source: missing: no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_wrong_key_is_refused_with_near_ones(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        look(cache, tmp_path / "made", "v0.mp4#O", "v1.mp4")
    assert "the cache has no clip with the key 'v0.mp4#O'. Similar keys: 'v0.mp4#" in str(
        caught.value
    )
    assert "no clip with the key 'v1.mp4'. Similar keys: 'v1.mp4#0', 'v1.mp4#1'" in str(
        caught.value
    )
    assert not (tmp_path / "made").exists()
    with pytest.raises(ConfigError, match=r"Some that it has: 'picture\.png#0'"):
        look(cache, tmp_path / "made", "%%%")


def test_clips_without_a_latent_say_why(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), buckets={"5x32x32": 8}, failed=[("5x32x32", 1)])
    keys = [f"5x32x32-{n:04d}" for n in range(8)]
    rows = [
        {**dict.fromkeys(PLAN_SCHEMA.names, ""), "key": key, "start": 0, "frames": 5, "fps": None}
        | {"shard": n // 4, "row": n % 4}
        for n, key in enumerate(keys)
    ]
    table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    opened = latentcache.open_cache(str(tmp_path))
    facts = plan_facts(opened.manifest.fingerprint)
    Storage(str(tmp_path)).write(
        plan_path(opened.manifest.generations[0].folder, "5x32x32"), to_parquet(table, facts)
    )
    assert [(p.shard.number, p.row) for p in find_places(opened, [keys[6], keys[0]])] == [
        (1, 2),
        (0, 0),
    ]
    with pytest.raises(
        ConfigError, match="'5x32x32-0001' failed, so there is no latent: corrupt: "
    ):
        find_places(opened, keys[:2])
    written.storage.delete(sample_path("5x32x32", 1))
    publish(written.storage, build_index(written.storage, written.manifest))
    with pytest.raises(ConfigError, match="'5x32x32-0004' is planned but not encoded yet"):
        find_places(latentcache.open_cache(str(tmp_path)), keys[4:5])


def test_names_of_files_stay_in_the_folder_and_apart() -> None:
    keys = ["../../etc/passwd#0", "a/b#1", "a__b#1", "...", "ü<>", "x" * 500]
    names = preview.file_names(keys)
    assert names == ["__..__etc__passwd-0", "a__b-1", "a__b-1-2", "clip", "___", "x" * 150]


def test_a_grid_runs_at_the_highest_rate_and_clips_stay_on_their_last_frame() -> None:
    def clip(values: list[int]) -> list[np.ndarray]:
        return [np.full((4, 6, 3), value, np.uint8) for value in values]

    clips = [(clip([1, 2, 3, 4]), 8.0), (clip([10, 20]), 4.0), (clip([9]), 1.0)]
    frames, fps = preview.tiled(clips)
    made = list(frames)
    height, width = 4 + preview.GAP, 6 + preview.GAP
    shown = [frame[::height, ::width, 0].ravel().tolist()[:3] for frame in made]
    assert fps == 8
    assert shown == [[1, 10, 9], [2, 10, 9], [3, 20, 9], [4, 20, 9]]

"""musubi-tuner's files: read by its rules, restated here, and taken in again."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec, Normaliser
from latentcache.errors import ConfigError
from latentcache.exchange.musubi import bucket_of, bucket_sizes, choose_resolution, find
from latentcache.format.manifest import read_manifest
from latentcache.storage.folder import Storage
from tests.tools.exchange import NAMES, export, make_cache, run, spec_of, take_in, unmark


def read(folder: Path, arch: str = "wan") -> dict[tuple[str, int], dict[str, object]]:
    """What musubi's `VideoDataset` finds: names parsed from the right, one latent per file."""
    found = {}
    for path in sorted(folder.glob(f"*_{arch}.safetensors")):
        tokens = path.stem.split("_")
        width, height = map(int, tokens[-2].split("x"))
        position, frames = map(int, tokens[-3].split("-")[:2])
        stem = "_".join(tokens[:-3])
        with safe_open(path, "pt") as file:
            (key,) = file.keys()
            latents, metadata = file.get_tensor(key), file.metadata()
        size = "x".join(map(str, latents.shape[1:]))
        assert key == f"latents_{size}_{str(latents.dtype).removeprefix('torch.')}"
        text = path.with_name(f"{stem}_{arch}_te.safetensors")
        item = {"latents": latents, "size": (width, height), "frames": frames, "metadata": metadata}
        found[stem, position] = {**item, "text": text}
    return found


def test_its_reader_gets_the_cache_s_normalised_mean(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, clips=2)
    printed = export(cache, tmp_path / "out", "musubi")
    found = read(tmp_path / "out")
    rows = {(r["source"], r["start"]): r for r in cache.table().to_pylist()}
    assert len(found) == len(rows) == len(cache)
    samples = cache.dataset(posterior="mode", dtype=torch.bfloat16)
    for (source, start), row in rows.items():
        item = found[Path(source).stem, start]
        assert torch.equal(item["latents"], samples[row["key"]]["latents"])
        assert item["size"] == (row["width"], row["height"])
        assert item["frames"] == row["frames"]
        assert item["metadata"] == {
            "architecture": "wan",
            "width": str(row["width"]),
            "height": str(row["height"]),
            "frame_count": str(row["frames"]),
            "format_version": "1.0.1",
        }
    assert f'cache_directory = "{tmp_path / "out"}"' in printed
    assert "resolution = [48, 32]" in printed
    assert "left to musubi's own script" in printed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_round_trip_gives_what_was_stored(tmp_path: Path, dtype: str) -> None:
    # By powers of two: nothing is rounded, in any type.
    exact = Normaliser(kind="channel", shift=(0.0,) * 4, scale=(0.5, 2.0, 1.0, 4.0))
    spec = dataclasses.replace(spec_of(stored="mean"), normaliser=exact, dtype=dtype)
    cache = make_cache(tmp_path, spec)
    export(cache, tmp_path / "out", "musubi", "--dtype", dtype)
    again = take_in("musubi", tmp_path / "out", tmp_path / "again", cache)
    assert again.spec.dtype == dtype
    for source in NAMES:
        stored = again.stored(f"{Path(source).stem}#0")
        assert torch.equal(stored, cache.stored(f"{source}#0"))
    assert read_manifest(again.storage).generations[0].kind == "import"


def test_clips_of_several_lengths_come_back_each(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, spec_of(stored="mean"), clips=2, frames=(5, 9))
    export(cache, tmp_path / "out", "musubi", "--dtype", "float32")
    again = take_in("musubi", tmp_path / "out", tmp_path / "again", cache, "--dtype", "float32")
    rows = cache.table().to_pylist()
    starts = Counter((row["source"], row["start"]) for row in rows)
    assert {*starts.values()} == {1, 2}
    assert len(again) == len(rows)
    for row in rows:
        frames = f"-{row['frames']}" if starts[row["source"], row["start"]] > 1 else ""
        stored = again.stored(f"{Path(row['source']).stem}#{row['start']}{frames}")
        expected = cache.stored(row["key"]).float()
        torch.testing.assert_close(stored, expected, rtol=0, atol=1e-6)


def put(folder: Path, name: str, spec: LatentSpec, latent_frames: int = 1) -> None:
    """Write a file of the data set's, of 32 x 48 pixels."""
    folder.mkdir(exist_ok=True)
    latents = torch.zeros(spec.channels, latent_frames, 4, 6, dtype=torch.bfloat16)
    save_file({f"latents_{latent_frames}x4x6_bfloat16": latents}, folder / name)


def test_clips_that_nothing_but_their_files_tells_apart_are_called_by_these(
    tmp_path: Path,
) -> None:
    spec = spec_of()
    names = ("a_00000-001_0048x0032", "a_0640x0480", "a_0800x0600", "a_00004-001_0048x0032")
    for name in names:
        put(tmp_path, f"{name}_wan.safetensors", spec)
    put(tmp_path, "a_00000-005_0048x0032_wan.safetensors", spec, 2)
    found = find(Storage(str(tmp_path)), spec)
    assert {record.key for record in found.records} == {
        *(f"{name}_wan" for name in names[:3]), "a#0-5", "a#4",
    }  # fmt: skip


def test_a_stopped_import_goes_on_where_a_key_has_become_longer(tmp_path: Path) -> None:
    cache, folder = make_cache(tmp_path), tmp_path / "theirs"
    put(folder, "a_00000-005_0048x0032_wan.safetensors", cache.spec, 2)
    before = take_in("musubi", folder, tmp_path / "again", cache).stored("a#0")
    for written in ("samples", "latents"):
        shutil.rmtree(tmp_path / "again" / written)
    put(folder, "a_00000-001_0048x0032_wan.safetensors", cache.spec)
    again = take_in("musubi", folder, tmp_path / "again", cache)
    assert again.table()["key"].to_pylist() == ["a#0"]
    assert torch.equal(again.stored("a#0"), before)


def test_normalisation_is_undone(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    export(cache, tmp_path / "out", "musubi", "--dtype", "float32")
    again = take_in("musubi", tmp_path / "out", tmp_path / "again", cache)
    for source in NAMES:
        mean = cache.stored(f"{source}#0")[: cache.spec.channels].float()
        torch.testing.assert_close(again.stored(f"{Path(source).stem}#0"), mean, rtol=0, atol=1e-6)


def test_an_image_to_video_file_and_a_half_one_are_refused_by_name(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    out = tmp_path / "out"
    export(cache, out, "musubi")
    unmark(out)
    path = sorted(out.glob("*_wan.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-7])
    printed = run("import", "musubi", out, tmp_path / "n", "--like", cache.storage.url, status=2)
    assert f"{path} is no whole safetensors file" in printed
    assert not (tmp_path / "n").exists()


def test_two_sources_of_one_stem_are_refused(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, names=("a/x.mp4", "b/x.mp4"))
    printed = export(cache, tmp_path / "out", "musubi", status=2)
    assert "'a/x.mp4', 'b/x.mp4'" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_stopped_export_goes_on_and_another_cache_s_is_refused(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    out = tmp_path / "out"
    export(cache, out, "musubi")
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in sorted(whole)[-2:]:
        (out / name).unlink()
    assert "3, 1 there already" in export(cache, out, "musubi")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert "another options" in export(cache, out, "musubi", "--dtype", "float32", status=2)
    other = make_cache(tmp_path / "other")
    assert "another cache" in export(other, out, "musubi", status=2)


def test_resolutions_give_each_size_a_bucket_of_its_own() -> None:
    sizes = {(832, 480), (480, 832)}
    width, height = choose_resolution(sizes)
    known = bucket_sizes(width, height)
    assert {bucket_of(size, known) for size in sizes} == sizes


def test_sizes_that_share_a_bucket_are_named() -> None:
    with pytest.raises(ConfigError, match="48x32 and 96x64"):
        choose_resolution({(48, 32), (96, 64)})


def test_latents_of_another_model_are_refused(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, spec_of("AutoencoderKLMochi"))
    assert "those of AutoencoderKLMochi" in export(cache, tmp_path / "out", "musubi", status=2)


def test_files_of_an_image_data_set_are_clips_of_one_frame(tmp_path: Path) -> None:
    """Their names say the picture's own size, and no place in time."""
    spec = spec_of("AutoencoderKLWan")
    latents = torch.zeros(spec.channels, 1, 4, 6, dtype=torch.bfloat16)
    save_file({"latents_1x4x6_bfloat16": latents}, tmp_path / "photo_0640x0480_wan.safetensors")
    (record,) = find(Storage(str(tmp_path)), spec).records
    assert (record.key, record.source, record.start) == ("photo#0", "photo", 0)
    assert record.bucket == Bucket(frames=1, height=32, width=48)


def test_files_of_another_model_in_the_folder_are_left_out(tmp_path: Path) -> None:
    """musubi globs for its model's own, so one folder may serve two."""
    cache = make_cache(tmp_path)
    out = tmp_path / "out"
    export(cache, out, "musubi")
    unmark(out)
    (first, *_) = ours = sorted(out.glob("*_wan.safetensors"))
    other = out / first.name.replace("_wan.", "_hv.")
    other.write_bytes(first.read_bytes())
    args = ("import", "musubi", out, tmp_path / "new", "--like", cache.storage.url)
    printed = run(*args)
    assert f"1 file of other models than AutoencoderKLWan left out: {other.name!r}" in printed
    assert "3 clips ok" in printed
    for path in ours:
        path.unlink()
    args = ("import", "musubi", out, tmp_path / "none", "--like", cache.storage.url)
    printed = run(*args, status=2)
    assert "whose names end with _wan.safetensors, and 1 are of other models" in printed
    assert "Name the encoder that made them with --like" in printed
    assert "Remove" not in printed
    assert not (tmp_path / "none").exists()

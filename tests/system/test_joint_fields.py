"""Joint fields from the command line to the batch: texts encoded with first frames, or with files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import latentcache
from jobs.cli import SOME_FAILED
from latentcache.config.fields import parse_field
from latentcache.errors import ConfigError
from latentcache.exchange import fastvideo
from tests.tools.caches import make_config, run_inline
from tests.tools.fields import write_fields
from tests.tools.texts.checkpoints import save
from tests.tools.texts.joint import CASES, PARTS
from tests.tools.texts.references import pipeline
from tests.tools.texts.threads import one_thread  # noqa: F401 - a fixture for all tests here
from tests.tools.videos import moving_pattern, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

SIZE = (32, 48)
#: By the names of sources: their captions.
CAPTIONS = {
    "a.mp4": ["A red fox runs.", "Snow falls."],
    "b.mp4": ["Two old boats."],
    "c.mp4": None,
    "d.mp4": ["An <image>.", "Golden light."],
}
NUM = len(CAPTIONS)


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos with captions and two pictures each, their cache, and their first frames as a field."""
    folder = tmp_path_factory.mktemp("joint")
    corpus = folder / "corpus"
    corpus.mkdir()
    for n, name in enumerate(CAPTIONS):
        write_video(corpus / name, moving_pattern(5, *SIZE, seed=n))
        for picture in ("one", "two"):
            pixels = moving_pattern(1, *SIZE, seed=10 * n + len(picture))
            Image.fromarray(pixels[0]).save(corpus / f"{name}.{picture}.png")
    table = {
        "video": list(CAPTIONS),
        "texts": list(CAPTIONS.values()),
        "nothing": pa.nulls(NUM, pa.string()),
        "one": [f"{name}.one.png" for name in CAPTIONS],
        "two": [None if name == "b.mp4" else f"{name}.two.png" for name in CAPTIONS],
    }
    pq.write_table(pa.table(table), corpus / "table.parquet")
    config = make_config(
        folder,
        corpus / "table.parquet",
        str(folder / "cache"),
        corpus={"keep": ["texts", "one", "two", "nothing"]},
        clips={"frames": 5, "size": list(SIZE)},
        fields={"frame0": {"kind": "raw", "of": "first"}},
    )
    status, printed = run_inline("precompute", config)
    assert status == 0, printed
    return folder


def joint(folder: Path, name: str, **settings: Any) -> dict[str, Any]:
    """A joint field of a case's tiny model."""
    model = folder / CASES[name].parts
    if not model.exists():
        save(model, PARTS[CASES[name].parts]())
    base = {"kind": "joint", "model": str(model), "dtype": "float32", "column": "texts"}
    return {**base, **CASES[name].raw, **settings}


def test_states_are_those_of_diffusers_for_the_clips_first_frame(folder: Path) -> None:
    name = "hunyuan_video_i2v_2"
    path = write_fields(folder, llava=joint(folder, name, images="first"))
    status, printed = run_inline("add_field", folder / "cache", path, "run.runner=local")
    assert status == SOME_FAILED, printed
    theirs = pipeline(
        CASES[name], folder / CASES[name].parts, PARTS[CASES[name].parts](), torch.float32
    )
    cache = latentcache.open_cache(str(folder / "cache"))
    reader = cache.field("llava")
    (bucket,) = cache.buckets
    table = cache.table().to_pylist()
    for row in table:
        rows = reader.rows(bucket, row["shard"])
        texts = CAPTIONS[row["source"]]
        if texts is None:
            assert row["row"] not in rows
            continue
        frame = Image.fromarray(cache[row["key"]]["frame0"][0].numpy())
        for choice, text in enumerate(texts):
            if "<image>" in text:
                assert [entry.choice for entry in rows[row["row"]].entries] == [1]
                continue
            sample = reader.sample(bucket, row["shard"], row["row"], choice)
            with torch.inference_mode():
                made = CASES[name].make(theirs, text, [frame])
            mask = made["states"].mask
            num = sample["llava_tokens"]
            assert mask is not None
            assert int(mask.sum()) == num
            assert torch.equal(sample["llava"][:num], made["states"].values[mask])
            assert torch.equal(sample["llava.pooled"], made["pooled"].values)


def test_batches_drop_them_to_zeros_and_to_nothing_else(folder: Path) -> None:
    url = str(folder / "cache")
    with pytest.raises(ConfigError, match=r"depend on each clip's image.*dropped='zeros'"):
        latentcache.LatentLoader(url, batch_size=3, fields=["llava"], caption_dropout=0.5)
    options: dict[str, Any] = {"fields": ["llava"], "caption_dropout": 0.5, "dropped": "zeros"}
    num_dropped = 0
    for seed in range(8):
        for batch in latentcache.LatentLoader(url, batch_size=3, seed=seed, **options):
            for dropped, states, mask in zip(
                batch["dropped"], batch["llava"], batch["llava_mask"], strict=True
            ):
                assert bool(mask.any()) != bool(dropped) == (not states.any())
                num_dropped += bool(dropped)
    assert 0 < num_dropped < 24


def test_they_are_exported_where_no_model_takes_them_for_a_texts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, out = folder / "cache", tmp_path / "out"
    monkeypatch.setitem(fastvideo._MODELS, "DCT", fastvideo._MODELS["AutoencoderKLWan"])
    refused, printed = run_inline("export", url, out, "--to", "fastvideo", "--text", "llava")
    assert refused == 2
    assert "(joint)" in printed
    assert not out.exists()
    status, printed = run_inline("export", url, out, "--to", "hf", "--field", "llava")
    assert status == 0, printed
    cache = latentcache.open_cache(str(url))
    places = {row["key"]: row for row in cache.table().to_pylist()}
    (path,) = out.glob("data/*.parquet")
    for row in pq.read_table(path).to_pylist():
        if row["llava"] is None:
            assert CAPTIONS[row["source"]] is None
            continue
        states = torch.frombuffer(bytearray(row["llava"]), dtype=torch.float32)
        place = places[row["key"]]
        stored = cache.field("llava").sample(place["bucket"], place["shard"], place["row"])["llava"]
        assert torch.equal(states.view(row["llava.shape"]), stored)


@pytest.mark.long
def test_a_field_of_empty_texts_is_what_the_pipeline_takes_as_an_empty_prompt(folder: Path) -> None:
    name = "hunyuan_video_i2v_2"
    field = joint(folder, name, images="first", column="nothing", missing="empty")
    path = write_fields(folder, empty=field)
    status, printed = run_inline("add_field", folder / "cache", path, "run.runner=local")
    assert status == 0, printed
    theirs = pipeline(
        CASES[name], folder / CASES[name].parts, PARTS[CASES[name].parts](), torch.float32
    )
    for batch in latentcache.LatentLoader(
        str(folder / "cache"), batch_size=NUM, fields=["empty", "frame0"]
    ):
        assert len(batch["key"]) == NUM
        for frame, states, mask in zip(
            batch["frame0"], batch["empty"], batch["empty_mask"], strict=True
        ):
            with torch.inference_mode():
                made = CASES[name].make(theirs, "", [Image.fromarray(frame[0].numpy())])["states"]
            assert made.mask is not None
            assert torch.equal(states[mask], made.values[made.mask])


def test_states_with_several_pictures_of_files(folder: Path) -> None:
    name = "qwen_image_edit_plus"
    field = joint(folder, name, images=["one", "two"], column="texts", max_choices=1)
    path = write_fields(folder, edit=field)
    status, printed = run_inline("add_field", folder / "cache", path, "run.runner=local")
    assert status == SOME_FAILED, printed
    tables = sorted((folder / "cache/fields/edit/samples").rglob("*.parquet"))
    found = {row["key"]: row for path in tables for row in pq.read_table(path).to_pylist()}
    assert {key: row["reason"] for key, row in found.items()} == {
        "a.mp4#0": None, "b.mp4#0": "missing_input", "c.mp4#0": "no_caption", "d.mp4#0": None,
    }  # fmt: skip
    theirs = pipeline(
        CASES[name], folder / CASES[name].parts, PARTS[CASES[name].parts](), torch.float32
    )
    pictures = [Image.open(folder / f"corpus/a.mp4.{which}.png") for which in ("one", "two")]
    with torch.inference_mode():
        made = CASES[name].make(theirs, "A red fox runs.", pictures)["states"].values
    cache = latentcache.open_cache(str(folder / "cache"))
    assert torch.equal(cache["a.mp4#0"]["edit"][: len(made)], made)


def test_equal_runs_give_equal_bytes_and_changed_captions_are_encoded_again(folder: Path) -> None:
    table = folder / "corpus/table.parquet"
    rows = pq.read_table(table).to_pylist()
    rows[1]["texts"] = ["Two new boats."]
    pq.write_table(pa.Table.from_pylist(rows), table)
    assert run_inline("precompute", folder / "config.yaml")[0] in (0, SOME_FAILED)
    words = ("run.runner=local", "run.decode_processes=1")
    _, printed = run_inline("resume", folder / "cache", "--field", "llava", *words)
    assert "changed  1 clips" in printed
    verified, printed = run_inline("verify", folder / "cache")
    assert verified == 0, printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": []}, "write first, or a list"),
        ({"images": ["a", "a"]}, "list of different columns"),
        ({"images": "last"}, "images"),
        ({"images": "first", "column": []}, "one column, or a list"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    field = {"kind": "joint", "family": "qwen_image_edit", "model": "x", **settings}
    with pytest.raises(ConfigError, match=message):
        parse_field("x", field)

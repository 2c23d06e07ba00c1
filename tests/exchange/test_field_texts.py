"""What a layout writes beside text states, or names their file by, is the very text that they are of."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import latentcache
from latentcache.config.fields import stored_field
from latentcache.exchange import musubi
from latentcache.exchange import texts as texts_module
from latentcache.exchange.clips import clip_rows
from latentcache.planning.planned import PlannedCache
from tests.exchange.test_fastvideo import read as read_fastvideo
from tests.exchange.test_other_trainers import read_rcm
from tests.tools import fields as fields_tool
from tests.tools.encoders.hashed_text import states
from tests.tools.exchange import COGVIDEOX, WAN, export, spec_of, take_in
from tests.tools.fields import add, cache_of, text_field
from tests.tools.forms import hf_samples, mds_samples, webdataset_samples

LENGTH = 24
CAPTIONS = ("caption A", "caption B")
TEXTS = (("first of A", "second of A"), (None, "first of B"))
WRITTEN = ("first of A", "first of B")

MakeCache = Callable[..., PlannedCache]


@pytest.fixture(name="make")
def make_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCache:
    """Makes a cache of a model class, with a field `t` of the column of lists `texts`."""

    def make(model_class: str, captions: Sequence[str], texts: object) -> PlannedCache:
        resolve = fields_tool.resolve_encoder
        spec = spec_of(model_class)
        monkeypatch.setattr(fields_tool, "resolve_encoder", lambda c: (spec, resolve(c)[1]))
        return cache_of(tmp_path, captions, texts=texts)  # type: ignore[arg-type]

    return make


@pytest.fixture(name="cache")
def cache_fixture(make: MakeCache) -> latentcache.Cache:
    planned = make(WAN, CAPTIONS, TEXTS)
    add(planned, t=text_field(length=LENGTH, column="texts", max_choices=4))
    return latentcache.open_cache(planned.storage.url)


def own(text: str) -> torch.Tensor:
    """What the field holds of a text."""
    return torch.from_numpy(states(text, LENGTH).copy()).bfloat16()


def test_fastvideo_s_caption_is_the_text_of_its_states(
    cache: latentcache.Cache, tmp_path: Path
) -> None:
    printed = export(cache, tmp_path / "out", "fastvideo", "--text", "t")
    assert "1 of 2 clips have several texts in the field t" in printed
    rows = [row for _, row in sorted(read_fastvideo(tmp_path / "out").items())]
    assert [row["caption"] for row in rows] == [*WRITTEN]
    for row, text in zip(rows, WRITTEN, strict=True):
        assert torch.equal(row["text_embedding"], own(text).float())
    again = take_in("fastvideo", tmp_path / "out", tmp_path / "again", cache)
    assert again.table()["caption"].to_pylist() == [*WRITTEN]


def test_musubi_s_caption_is_the_text_of_its_states(
    cache: latentcache.Cache, tmp_path: Path
) -> None:
    printed = export(cache, tmp_path / "out", "musubi", "--text", "t")
    assert "only the first one of each is written" in printed
    for n, text in enumerate(WRITTEN):
        path = tmp_path / "out" / f"v{n}_wan_te.safetensors"
        assert torch.equal(load_file(path)["varlen_t5_bfloat16"], own(text))
        with safe_open(path, "pt") as file:
            assert file.metadata()["caption1"] == text


def test_rcm_s_prompt_is_the_text_of_its_states(cache: latentcache.Cache, tmp_path: Path) -> None:
    export(cache, tmp_path / "out", "rcm", "--text", "t")
    found = read_rcm(tmp_path / "out")
    assert [prompt for _, _, prompt in found] == [*WRITTEN]
    for (_, embedding, _), text in zip(found, WRITTEN, strict=True):
        assert torch.equal(embedding[: len(text) + 1], own(text))


def test_cogvideo_names_states_by_their_own_text(make: MakeCache, tmp_path: Path) -> None:
    """Two clips of one caption, and of other texts."""
    texts = (("a red disc",), ("a blue disc",))
    planned = make(COGVIDEOX, ("a video", "a video"), texts)
    add(planned, t=text_field(length=LENGTH, column="texts"))
    cache = latentcache.open_cache(planned.storage.url)
    printed = export(cache, tmp_path / "out", "cogvideo", "--text", "t")
    assert "prompts.txt must be the texts of the field t, of the column texts" in printed
    folder = tmp_path / "out" / "cache" / "prompt_embeddings"
    assert len([*folder.iterdir()]) == 2
    for (text,) in texts:
        name = hashlib.sha256(text.encode()).hexdigest()
        found = load_file(folder / f"{name}.safetensors")["prompt_embedding"]
        assert torch.equal(found[: len(text) + 1], own(text))


def test_cogvideo_prefers_the_states_of_a_prompt_to_those_with_blanks_around_it(
    make: MakeCache, tmp_path: Path
) -> None:
    planned = make(COGVIDEOX, (" a cat ", "a cat", "a cat\t"), None)
    add(planned, t=text_field(length=LENGTH))
    cache = latentcache.open_cache(planned.storage.url)
    export(cache, tmp_path / "out", "cogvideo", "--text", "t")
    (path,) = (tmp_path / "out" / "cache" / "prompt_embeddings").iterdir()
    found = load_file(path)["prompt_embedding"]
    assert torch.equal(found[: len("a cat") + 1], own("a cat"))


def test_the_text_after_one_that_failed_is_the_one_that_is_written(
    make: MakeCache, tmp_path: Path
) -> None:
    planned = make(WAN, CAPTIONS, (("CLIP fails", "sound"), ("other",)))
    add(planned, status=3, t=text_field(length=LENGTH, column="texts"))
    cache = latentcache.open_cache(planned.storage.url)
    export(cache, tmp_path / "out", "fastvideo", "--text", "t")
    rows = [row for _, row in sorted(read_fastvideo(tmp_path / "out").items())]
    assert [row["caption"] for row in rows] == ["sound", "other"]
    assert torch.equal(rows[0]["text_embedding"], own("sound").float())


def test_fields_of_the_same_texts_are_written_of_the_same_one(
    make: MakeCache, tmp_path: Path
) -> None:
    planned = make(WAN, CAPTIONS, (("CLIP fails", "sound"), ("other",)))
    add(planned, status=3, ill=text_field(length=LENGTH, column="texts"))
    add(planned, calm=text_field(length=LENGTH, column="texts", calm=True))
    cache = latentcache.open_cache(planned.storage.url)
    fields = ("--field", "calm", "--field", "ill")
    both = export(cache, tmp_path / "both", "webdataset", *fields)
    one = export(cache, tmp_path / "one", "webdataset", *fields[:2])
    for printed, written in (
        (both, "one of each is written: the first one, or of 1 clip a later one, since encoding"),
        (one, "only the first one of each is written"),
    ):
        assert f"1 of 2 clips have several texts in the field calm, and {written}" in printed
    for folder, texts in (("both", ("sound", "other")), ("one", ("CLIP fails", "other"))):
        samples = webdataset_samples(tmp_path / folder)
        for sample, text in zip(samples, texts, strict=True):
            num = sample["json"]["calm_tokens"]
            assert sample["json"]["calm_choice"] == (1 if text == "sound" else 0)
            assert torch.equal(sample["calm.pth"][:num], own(text))
            assert folder == "one" or torch.equal(sample["ill.pth"][:num], own(text))


def test_clips_of_a_source_with_other_texts_are_refused_by_musubi(
    cache: latentcache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One caption for both, but two texts: the folder has one text file per source."""
    rows = [
        dataclasses.replace(row, source="one.mp4", caption="same", start=row.number)
        for row in clip_rows(cache)
    ]
    monkeypatch.setattr(musubi, "clip_rows", lambda cache, bucket: rows)
    printed = export(cache, tmp_path / "out", "musubi", "--text", "t", status=2)
    assert (
        "1 clip with another text in the field t than the first one of the same source" in printed
    )


def test_texts_that_are_not_known_are_refused(
    cache: latentcache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = stored_field("t", text_field(column="another"))
    monkeypatch.setattr(texts_module, "stored_field", lambda *_: other)
    printed = export(cache, tmp_path / "out", "fastvideo", "--text", "t", status=2)
    assert "which texts its states are of is not known: column 'another'" in printed
    assert "Nothing was written" in printed
    assert not (tmp_path / "out").exists()


def test_generic_layouts_say_that_captions_are_not_the_texts(
    cache: latentcache.Cache, tmp_path: Path
) -> None:
    printed = export(cache, tmp_path / "out", "webdataset", "--field", "t")
    assert "1 of 2 clips have several texts in the field t" in printed
    assert "states t are of the texts in texts, and not of the captions beside them" in printed
    assert [sample["txt"] for sample in webdataset_samples(tmp_path / "out")] == [*CAPTIONS]


def test_nothing_is_said_of_captions_with_one_text_each(
    wan: latentcache.Cache, tmp_path: Path
) -> None:
    for layout, option in (("fastvideo", "--text"), ("hf", "--field")):
        printed = export(wan, tmp_path / layout, layout, option, "umt5")
        assert "several texts" not in printed
        assert "of the captions" not in printed


@pytest.mark.parametrize("layout", ["hf", "mds"])
def test_which_text_was_written_is_said(layout: str, make: MakeCache, tmp_path: Path) -> None:
    planned = make(WAN, CAPTIONS, (("CLIP fails", "sound"), ("other",)))
    add(planned, status=3, t=text_field(length=LENGTH, column="texts"))
    cache = latentcache.open_cache(planned.storage.url)
    export(cache, tmp_path / "out", layout, "--field", "t")
    read = hf_samples if layout == "hf" else mds_samples
    assert [sample["t_choice"] for sample in read(tmp_path / "out")] == [1, 0]

"""Numbers that the data type of a layout does not hold are refused by name, and never become infinity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentcache.core.spec import Normaliser
from latentcache.errors import ConfigError
from latentcache.exchange.clips import clip_rows, converted
from latentcache.exchange.finetrainers import FOLDER, Moments
from latentcache.exchange.texts import Texts
from tests.tools.exchange import COGVIDEOX, WAN, export, make_cache, spec_of, take_in
from tests.tools.fields import add, text_field

LARGE = Normaliser(kind="channel", shift=(0.0,) * 4, scale=(1e6, 1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("layout", "model"), [("musubi", WAN), ("simpletuner", WAN), ("cogvideo", COGVIDEOX)]
)
def test_latents_beyond_float16_are_refused_by_name(
    layout: str, model: str, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path, spec_of(model, normaliser=LARGE), names=("one.mp4",))
    out = tmp_path / "out"
    printed = export(cache, out, layout, "--dtype", "float16", status=2)
    assert "latents of 'one.mp4#0' reach" in printed
    assert "float16 holds no number beyond 65,504" in printed
    assert "--dtype bfloat16 or float32" in printed
    assert not [path for path in out.rglob("*") if path.is_file() and path.name[0] != "."]
    export(cache, tmp_path / "other", layout, "--dtype", "bfloat16")


def test_moments_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    like, source = make_cache(tmp_path), tmp_path / "theirs" / FOLDER
    source.mkdir(parents=True)
    torch.save({"latents": torch.full((1, 8, 2, 4, 6), 1e6)}, source / "latent-0.pt")
    cache = take_in("finetrainers", source.parent, tmp_path / "again", like)
    (row,) = clip_rows(cache)
    with pytest.raises(ConfigError, match="'000000000#0' reach 1e"):
        Moments(cache, "float16")(row)
    assert Moments(cache, "bfloat16")(row).dtype == torch.bfloat16


def test_states_of_texts_go_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(tmp_path, names=("one.mp4",))
    add(cache, umt5=text_field(length=24))
    rows = clip_rows(cache)
    texts = Texts(cache, "umt5", rows)
    large = torch.full((24, 4), 1e6)
    monkeypatch.setattr(texts, "_read", lambda _: (large, 24))
    for read in (texts.unpadded, texts.stored, lambda row, dtype: texts.padded(row, 30, dtype)):
        with pytest.raises(ConfigError, match=r"the states umt5 of 'one\.mp4#0' reach 1e"):
            read(rows[0], "float16")


def test_what_is_not_finite_is_said_to_be_so() -> None:
    with pytest.raises(ConfigError, match="have NaN or infinity"):
        converted(torch.tensor([float("nan")]), "float32", "a#0")

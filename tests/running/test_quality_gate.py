"""The quality gate: mistakes that runs stop at, what it records, and that it changes no latent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import latentcache
from latentcache.config.sections import QualityConfig
from latentcache.core.dtypes import Array, as_numpy
from latentcache.core.records import ClipId, ShardId
from latentcache.core.spec import LatentSpec
from latentcache.errors import RunStoppedError
from latentcache.inspecting.clip_reader import PairReader
from latentcache.running.quality_gate import WARN_PSNR_DB, Gate, compare, find_problem
from tests.tools.caches import (
    assert_same_cache,
    make_config,
    make_corpus,
    objects_of,
    read_files,
    read_tables,
    run_inline,
)
from tests.tools.encoders import spoilt_dct
from tests.tools.encoders.spoilt_dct import Config
from tests.tools.videos import SHARED, SHARED_VIDEOS, moving_pattern, needs_shared_videos

pytestmark = pytest.mark.usefixtures("kept_pools")

MISTAKES = {
    "unit_range": r"0\.\d+ x the contrast and \+64 .*another range",
    "bgr": "red and blue are swapped",
    "negative": "a negative",
    "normalised": "scaled by the normaliser",
    "other_weights": "weights of another model",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("gate") / "corpus", 4)


def psnrs(cache: Path) -> dict[tuple[str, int, int], float | None]:
    """The column by bucket, shard and row of every ok clip."""
    rows = latentcache.open_cache(str(cache)).table().to_pylist()
    return {(r["bucket"], r["shard"], r["row"]): r["psnr"] for r in rows if r["status"] == "ok"}


def run(folder: Path, corpus: Path, name: str, /, **sections: dict[str, object]) -> tuple[int, str]:
    """Encode the corpus into the folder `name` with the plug-in of that name."""
    sections = {"encoder": {"kind": f"tests.tools.encoders.spoilt_dct:{name}"}, **sections}
    return run_inline("precompute", make_config(folder, corpus, str(folder / name), **sections))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_encoder_stops_the_run_in_its_first_clips(
    mistake: str, tmp_path: Path, corpus: Path
) -> None:
    status, printed = run(tmp_path, corpus, mistake, quality={"min_psnr": WARN_PSNR_DB})
    assert status == 1
    assert "RunStoppedError: decoded, the latest 3 clips" in printed
    for said in ("latentcache preview", "quality.min_psnr=null", "fed pixels in [-1.0, 1.0]"):
        assert said in printed
    tables = read_tables(tmp_path / mistake)
    committed = [table for name, table in tables.items() if re.match(r"samples/\d", name)]
    assert sum(map(len, committed)) < QualityConfig().judged_clips


@pytest.mark.parametrize(("mistake", "expected"), MISTAKES.items())
def test_the_message_tells_a_mistake_from_the_others(mistake: str, expected: str) -> None:
    gate, latents, pixels = _encoded(mistake, min_psnr=WARN_PSNR_DB)
    with pytest.raises(RunStoppedError, match=expected):
        gate.look(latents, pixels, key="k", number=0)
    with pytest.raises(RunStoppedError):  # nor does a clip that is in no sample pass from then on
        gate.look(latents, pixels, key="l", number=1)


@pytest.mark.long
@pytest.mark.slow
def test_a_verdict_reaches_the_driver_through_ray(tmp_path: Path, corpus: Path) -> None:
    sections: dict[str, dict[str, object]] = {"run": {"runner": "ray", "device": "cpu"}}
    status, printed = run(tmp_path, corpus, "bgr", quality={"min_psnr": WARN_PSNR_DB}, **sections)
    assert status == 1
    assert "RunStoppedError: decoded, the latest 3 clips" in printed
    assert "will be retried" not in printed


def _encoded(name: str, **quality: float) -> tuple[Gate, Array, torch.Tensor]:
    """A gate that looks at the first clip, a clip's latents as stored, and its pixels."""
    config = Config(kind=f"tests.tools.encoders.spoilt_dct:{name}")
    spec: LatentSpec = spoilt_dct.describe(config, dtype="bfloat16")
    encoder = getattr(spoilt_dct, name)(config, spec=spec, device=torch.device("cpu"))
    pixels = torch.from_numpy(moving_pattern(5, 64, 96))
    latents = encoder.encode(pixels[None])[0, : spec.channels].to(torch.bfloat16)
    gate = Gate(encoder, QualityConfig(judged_clips=1, **quality))
    return gate, as_numpy(latents.contiguous()), pixels


@pytest.mark.slow
def test_without_a_limit_a_mistake_is_warned_of_once_and_recorded(
    tmp_path: Path, corpus: Path
) -> None:
    status, printed = run(tmp_path, corpus, "unit_range", quality={"every": 1})
    assert status == 3  # two sources are damaged
    assert printed.count("warning: decoded, the latest") == 1
    assert "\\n" not in printed
    assert printed.count("warning:   Look at clips with") == 1
    assert "quality  PSNR" in printed
    recorded = psnrs(tmp_path / "unit_range")
    assert all(psnr is not None and psnr < WARN_PSNR_DB for psnr in recorded.values())


@pytest.mark.long
@pytest.mark.slow
def test_resume_goes_on_in_spite_of_the_gate_where_it_is_told_to(
    tmp_path: Path, corpus: Path
) -> None:
    assert run(tmp_path, corpus, "negative", quality={"min_psnr": WARN_PSNR_DB})[0] == 1
    cache = tmp_path / "negative"
    assert run_inline("resume", cache)[0] == 1
    assert run_inline("resume", cache, "quality.min_psnr=null")[0] == 3
    assert psnrs(cache)


@pytest.mark.slow
def test_the_gate_changes_no_latent(tmp_path: Path, corpus: Path) -> None:
    caches = []
    for every in (0, 1):
        folder = tmp_path / str(every)
        folder.mkdir()
        quality: dict[str, object] = {"every": every}
        assert run(folder, corpus, "sound", quality=quality, encoder={"kind": "dct"})[0] == 3
        caches.append(folder / "sound")
    without, with_gate = (objects_of(read_files(cache)) for cache in caches)
    assert without == with_gate
    assert not any(psnrs(caches[0]).values())
    assert all(psnrs(caches[1]).values())


@pytest.mark.slow
def test_sampled_clips_are_chosen_by_place_so_that_two_runs_agree(
    tmp_path: Path, corpus: Path
) -> None:
    quality: dict[str, object] = {"every": 4}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert run(tmp_path / name, corpus, "sound", quality=quality)[0] == 3
    assert_same_cache(tmp_path / "a" / "sound", tmp_path / "b" / "sound")
    rows = psnrs(tmp_path / "a" / "sound")
    shard_clips = 3
    sampled = {place for place in rows if (place[1] * shard_clips + place[2]) % 4 == 0}
    assert {place for place, psnr in rows.items() if psnr is not None} == sampled
    assert len({bucket for bucket, _, _ in sampled}) == 2


@pytest.mark.slow
def test_what_is_recorded_is_what_a_preview_measures(tmp_path: Path, corpus: Path) -> None:
    from latentcache.config.files import load_config

    sections: dict[str, dict[str, object]] = {"encoder": {"kind": "dct", "store": "moments"}}
    path = make_config(tmp_path, corpus, str(tmp_path / "cache"), **sections)
    assert run_inline("precompute", path)[0] == 3
    cache = latentcache.open_cache(str(tmp_path / "cache"))
    recorded = {k: psnr for k, psnr in psnrs(tmp_path / "cache").items() if psnr is not None}
    with PairReader(cache, load_config(str(path))) as reader:
        for (bucket, shard, row), psnr in recorded.items():
            quality = reader.pair(ClipId(shard=ShardId(bucket, shard), row=row)).quality
            assert quality is not None
            assert psnr == round(quality.psnr_db, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"), [("no_memory", "no GPU memory to decode"), ("no_decoder", "cannot decode")]
)
def test_a_clip_that_cannot_be_decoded_is_stored_and_not_compared(
    name: str, said: str, tmp_path: Path, corpus: Path
) -> None:
    quality: dict[str, object] = {"every": 1, "min_psnr": WARN_PSNR_DB}
    status, printed = run(tmp_path, corpus, name, quality=quality)
    assert status == 3
    assert said in printed
    assert set(psnrs(tmp_path / name).values()) == {None}


def test_an_encoder_without_a_decoder_is_asked_once() -> None:
    gate, latents, pixels = _encoded("no_decoder", every=1)
    for number in range(3):
        assert gate.look(latents, pixels, key="k", number=number) is None
    assert gate.num_compared == 1


def test_one_odd_clip_is_no_reason_to_stop() -> None:
    pixels = torch.from_numpy(moving_pattern(3, 32, 48))
    good, bad = compare("good", pixels, pixels), compare("bad", 255 - pixels, pixels)
    assert find_problem([good, bad, good], WARN_PSNR_DB) is None
    assert find_problem([bad, good, bad], WARN_PSNR_DB) is not None


def test_a_clip_of_one_colour_can_be_compared() -> None:
    black = torch.zeros(3, 32, 48, 3, dtype=torch.uint8)
    assert find_problem([compare("same", black, black)], WARN_PSNR_DB) is None
    assert find_problem([compare("white", black + 255, black)], WARN_PSNR_DB) is not None


@pytest.mark.slow
@needs_shared_videos
def test_trained_weights_pass_and_with_swapped_colours_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentcache.encoders.native import taesd

    weights = {
        part: str(SHARED / "weights" / f"taef2_{part}.pth") for part in ("encoder", "decoder")
    }
    sections: dict[str, dict[str, object]] = {
        "corpus": {"source": str(SHARED_VIDEOS / "*i*.mp4")},
        "clips": {"frames": 1, "size": [96, 144], "select": "first"},
        "encoder": {"kind": "taesd", "store": "mean", "dtype": "float32", **weights},
        "quality": {"min_psnr": WARN_PSNR_DB},
    }
    path = make_config(tmp_path, tmp_path, str(tmp_path / "cache"), **sections)
    status, printed = run_inline("precompute", path)
    assert (status, "quality  PSNR" in printed) == (0, True), printed
    encode = taesd.TAESDEncoder.encode
    monkeypatch.setattr(
        taesd.TAESDEncoder,
        "encode",
        lambda encoder, pixels: encode(encoder, pixels.flip(-1).contiguous()),
    )
    status, printed = run_inline("precompute", path, f"cache.url={tmp_path}/swapped")
    assert status == 1
    assert "red and blue are swapped" in printed

"""Visual fields with masks: VACE's condition against diffusers' pipeline, and what a mask hides."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import latentcache
from jobs.cli import SOME_FAILED
from latentcache.config.fields import parse_field
from latentcache.errors import ConfigError
from tests.tools.caches import make_config, run_inline
from tests.tools.fields import write_fields
from tests.tools.texts.threads import one_thread  # noqa: F401 - a fixture for all tests here
from tests.tools.tiny_models import save_wan
from tests.tools.videos import moving_pattern, read_with_pyav, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

FRAMES, HEIGHT, WIDTH = 9, 32, 48
FIELDS: dict[str, dict[str, Any]] = {
    "vace": {"kind": "visual", "of": "vace", "masks": "mask"},
    "edit": {"kind": "visual", "of": "vace", "masks": "mask", "column": "control"},
    "guided": {"kind": "visual", "of": "vace", "column": "control"},
    "kept": {"kind": "visual", "of": "masked", "masks": "mask"},
}
#: The sources: mask and control file of each.
CORPUS: dict[str, tuple[str | None, str | None]] = {
    "moving.mp4": ("masks/moving.mp4", "control/same.mp4"),
    "still.mp4": ("masks/still.png", "control/same.mp4"),
    "maskless.mp4": (None, "control/same.mp4"),
    "uncontrolled.mp4": ("masks/moving.mp4", None),
}


def write_corpus(folder: Path) -> None:
    for name in ("masks", "control"):
        (folder / name).mkdir(parents=True)
    for n, name in enumerate(CORPUS):
        write_video(folder / name, moving_pattern(FRAMES, HEIGHT, WIDTH, seed=n))
    write_video(folder / "control/same.mp4", moving_pattern(FRAMES, HEIGHT, WIDTH, seed=20))
    masks = moving_pattern(FRAMES, HEIGHT, WIDTH, seed=30)[..., :1].repeat(3, axis=-1)
    write_video(folder / "masks/moving.mp4", masks)  # of all levels, and not grey to the last bit
    still = np.zeros((HEIGHT, WIDTH), np.uint8)
    still[8:, 20:] = 255
    Image.fromarray(still).save(folder / "masks/still.png")
    masks, controls = zip(*CORPUS.values(), strict=True)
    table = pa.table({"video": list(CORPUS), "mask": masks, "control": controls})
    pq.write_table(table, folder / "table.parquet")


@pytest.fixture(
    scope="module",
    name="folder",
    params=["float32", pytest.param("bfloat16", marks=pytest.mark.long)],
)
def folder_fixture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache of a small random Wan VAE, whose fields were added to it."""
    folder = tmp_path_factory.mktemp("masked")
    write_corpus(folder / "corpus")
    save_wan(folder / "wan")
    encoder = {"kind": "diffusers_video", "model": str(folder / "wan"), "dtype": request.param}
    config = make_config(
        folder,
        folder / "corpus/table.parquet",
        str(folder / "cache"),
        corpus={"keep": ["mask", "control"]},
        clips={"frames": FRAMES, "select": "first", "size": [HEIGHT, WIDTH]},
        encoder={**encoder, "store": "moments"},
        cache={"dtype": request.param},
    )
    assert run_inline("precompute", config)[0] == 0
    words = ("run.runner=local", "run.decode_processes=1")
    path = write_fields(folder, **FIELDS)
    status, printed = run_inline("add_field", folder / "cache", path, *words)
    assert status == SOME_FAILED, printed
    return folder


def sample(folder: Path, key: str) -> Any:
    return latentcache.open_cache(str(folder / "cache"))[f"{key}#0"]


def levels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A mask of every frame, uint8 [T, H, W, 3]."""
    if path.suffix == ".png":
        return np.array(Image.open(path).convert("RGB"))[None].repeat(FRAMES, axis=0)
    return read_with_pyav(path)


def reference(folder: Path, video: Path, mask: Path | None, dtype: torch.dtype) -> Any:
    """What the pipeline gives its transformer: [2C + 64, t, h, w], before it is cast to its dtype."""
    from diffusers import AutoencoderKLWan, WanVACEPipeline

    vae = AutoencoderKLWan.from_pretrained(folder / "wan", torch_dtype=dtype).eval()
    parts = dict.fromkeys(("tokenizer", "text_encoder", "scheduler"))
    pipeline = WanVACEPipeline(**parts, transformer=None, vae=vae)
    patches = SimpleNamespace(config=SimpleNamespace(patch_size=(1, 2, 2)))
    pipeline.transformer = patches
    images = [[Image.fromarray(frame) for frame in read_with_pyav(video)]]
    masks = None if mask is None else [[Image.fromarray(frame) for frame in levels(mask)]]
    with torch.inference_mode():
        pixels, masked, none = pipeline.preprocess_conditions(
            images[0],
            None if masks is None else masks[0],
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        pair = pipeline.prepare_video_latents(pixels, masked, none, device=torch.device("cpu"))
        return pair[0], pipeline.prepare_masks(masked, none)[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("field", "key", "video", "mask"),
    [
        ("vace", "moving.mp4", "moving.mp4", "masks/moving.mp4"),
        ("vace", "still.mp4", "still.mp4", "masks/still.png"),
        ("edit", "moving.mp4", "control/same.mp4", "masks/moving.mp4"),
        ("guided", "maskless.mp4", "control/same.mp4", None),
    ],
)
def test_the_condition_of_vace_is_the_pipelines_own(
    folder: Path, field: str, key: str, video: str, mask: str | None
) -> None:
    found, corpus = sample(folder, key), folder / "corpus"
    dtype = found[field].dtype
    pair, masks = reference(folder, corpus / video, mask and corpus / mask, dtype)
    assert torch.equal(found[field], pair)
    assert torch.equal(found[f"{field}.mask"], masks.to(dtype))
    if mask == "masks/moving.mp4":  # or it would say little
        assert len(masks.unique()) > 100
        assert len({frame.sum().item() for frame in masks.unbind(1)}) == masks.shape[1]


@pytest.mark.slow
def test_what_a_mask_keeps_is_the_first_of_the_pair(folder: Path) -> None:
    for key in ("moving.mp4", "still.mp4"):
        found = sample(folder, key)
        assert torch.equal(found["kept"], found["vace"][: len(found["kept"])])


@pytest.mark.slow
def test_batches_and_views_have_the_condition_too(folder: Path) -> None:
    options: dict[str, Any] = {"fields": ["vace"], "shuffle": False}
    batch = next(iter(latentcache.LatentLoader(str(folder / "cache"), batch_size=8, **options)))
    assert "maskless.mp4#0" not in batch["key"]
    for n, key in enumerate(batch["key"]):
        found = sample(folder, key.partition("#")[0])
        assert torch.equal(batch["vace"][n], found["vace"])
        assert torch.equal(batch["vace.mask"][n], found["vace.mask"])
    view = latentcache.Window(1, start="all", middle=True)
    part = next(iter(latentcache.LatentLoader(str(folder / "cache"), view=view, **options)))
    for n, (frame,) in enumerate(part["frame_indices"].tolist()):
        whole = sample(folder, part["key"][n].partition("#")[0])
        for name in ("vace", "vace.mask"):
            assert torch.equal(part[name][n, :, 0], whole[name][:, frame])


@pytest.mark.slow
def test_a_clip_without_its_files_is_a_row_with_a_reason(folder: Path) -> None:
    found = {}
    for name in FIELDS:
        tables = sorted((folder / f"cache/fields/{name}/samples").rglob("*.parquet"))
        rows = [row for path in tables for row in pq.read_table(path).to_pylist()]
        found[name] = {r["key"]: r["reason"] for r in rows if r["status"] == "failed"}
    no_mask, no_control = (
        {"maskless.mp4#0": "missing_input"},
        {"uncontrolled.mp4#0": "missing_input"},
    )
    assert found == {
        "vace": no_mask,
        "kept": no_mask,
        "edit": no_mask | no_control,
        "guided": no_control,
    }


@pytest.mark.slow
def test_a_mask_that_moves_to_another_file_is_encoded_again(folder: Path) -> None:
    """Both columns are read: the second one changes here, of a field that has two."""
    corpus, cache = folder / "corpus", str(folder / "cache")
    before = {key: sample(folder, key)["edit"] for key in ("moving.mp4", "still.mp4")}
    table = pq.read_table(corpus / "table.parquet").to_pydict()
    table["control"][1] = "moving.mp4"
    pq.write_table(pa.table(table), corpus / "table.parquet")
    assert run_inline("precompute", folder / "config.yaml")[0] in (0, SOME_FAILED)
    path = write_fields(folder, edit=FIELDS["edit"])
    status, printed = run_inline("add_field", cache, path, "--update", "run.runner=local")
    assert status in (0, SOME_FAILED), printed
    assert torch.equal(sample(folder, "moving.mp4")["edit"], before["moving.mp4"])
    assert not torch.equal(sample(folder, "still.mp4")["edit"], before["still.mp4"])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"of": "masked"}, "of: masked needs `masks`"),
        ({"of": "vace"}, "of: vace needs `masks`"),
        ({"of": "vace", "masks": "a", "column": "a"}, "the same column"),
        ({"of": "first", "masks": "a"}, "should be 'masked' or 'vace'"),
        ({"of": "vace", "masks": "a", "encoder": {"family": "siglip"}}, "should be 'latents'"),
        ({"of": "masked", "masks": "a", "mask": "wan"}, "mask"),
    ],
)
def test_fields_with_masks_that_cannot_be_are_refused(field: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_field("bad", {"kind": "visual", **field})

"""Every family from a run to a batch: a loader gives of a caption what diffusers' pipeline gives of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import latentcache
from tests.encoders.text.test_references import assert_same
from tests.tools.caches import make_config, printed_by
from tests.tools.fields import write_fields
from tests.tools.texts import joint
from tests.tools.texts.captions import KINDS, captions
from tests.tools.texts.checkpoints import Parts, save
from tests.tools.texts.references import CASES, Case, Made, Padded, pipeline, saved
from tests.tools.texts.threads import one_thread  # noqa: F401 - a fixture for all tests here
from tests.tools.videos import moving_pattern

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

SIZE = (64, 96)
NUM = 200
#: Empty, one word, three times too long, mojibake with an accent, HTML entities twice escaped, Chinese, an
#: emoji of several characters, blanks around and within, blanks only.
FEW = [KINDS[n] for n in (0, 1, 3, 4, 5, 6, 7, 8, 10)]
#: As long as each pipeline's call makes them.
LENGTHS = {
    "wan": 512, "wan_226": 226, "cogvideox": 226, "ltx": 128, "ltx_condition": 256, "mochi": 256,
    "mochi_zeros": 256, "cosmos": 512, "cosmos2": 512, "cosmos25": 512, "hunyuan_video": 256,
    "hunyuan_video15": 1000, "qwen_image": 1024, "flux": 512, "sd3": 333, "sdxl": 77, "ltx2": 1024,
    "ltx23": 1024, "flux2": 512, "kandinsky5": 512,
}  # fmt: skip
#: Those that the default run compares: a mask on either side, padding that is attended, further arrays.
#: Zeros are those of Wan, which is compared in `test_pretrained_fields`.
DEFAULT = ("hunyuan_video", "flux", "ltx2")
DTYPES = ("float32", "bfloat16")
Cache = Callable[[Sequence[str]], str]
ImagesOf = Callable[[int], list[Image.Image]]


@pytest.fixture(scope="module", name="cache")
def cache_fixture(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a function of captions: a cache of as many pictures, of the encoder's own size."""
    made = functools.cache(lambda texts: precomputed(tmp_path_factory.mktemp("cache"), texts))
    return lambda texts: made(tuple(texts))


def precomputed(folder: Path, texts: Sequence[str]) -> str:
    names = [f"{n}.png" for n in range(len(texts))]
    for n, name in enumerate(names):
        Image.fromarray(moving_pattern(1, *SIZE, seed=n)[0]).save(folder / name)
    table = {"video": names, "caption": texts, "same": names, "next": names[1:] + names[:1]}
    pq.write_table(pa.table(table), folder / "corpus.parquet")
    config = make_config(
        folder, folder / "corpus.parquet", str(folder / "cache"),
        clips={"frames": 1, "size": list(SIZE)}, corpus={"keep": ["same", "next"]},
        cache={"shard_clips": 16},
    )  # fmt: skip
    printed_by("precompute", config)
    return str(folder / "cache")


def picture(url: str, number: int) -> Image.Image:
    return Image.open(Path(url).parent / f"{number}.png").convert("RGB")


class Added:
    """A field of a family, which is added to a cache, and its pipeline on the same files."""

    def __init__(self, url: str, case: Case, model: Path, parts: Parts, **settings: Any) -> None:
        cache = latentcache.open_cache(url)
        self.url, self.name, self.case = url, f"text{len(cache.field_names)}", case
        raw = {"missing": "empty", "model": str(model), **case.raw, **settings}
        path = write_fields(Path(url).parent, **{self.name: raw})
        printed_by("add_field", url, path, "run.runner=local")
        self.reader = latentcache.open_cache(url).field(self.name)
        self.theirs = pipeline(case, model, parts, getattr(torch, settings["dtype"]))

    def check(self, texts: Sequence[str], images: ImagesOf | None = None) -> None:
        """Compare all arrays of all clips. texts, images: of each clip, by its number."""
        seen = []
        for n, found in self._in_batches():
            # What has only blanks is no text.
            text = texts[n] if texts[n].strip() else ""
            self._compare(found, text, *(() if images is None else (images(n),)))
            seen.append(n)
        assert sorted(seen) == list(range(len(texts)))

    def check_dropped(self) -> None:
        """Compare what stands for a text that was dropped."""
        _, found = next(self._in_batches(caption_dropout=1.0))
        self._compare(found, "")

    def _compare(self, found: Made, *given: Any) -> None:
        with torch.inference_mode():
            expected = self.case.make(self.theirs, *given)
        assert list(found) == list(expected)
        for array in self.reader.field.arrays:
            key = array.name or "states"
            assert_same(found[key], expected[key], array)

    def _in_batches(self, **options: Any) -> Iterator[tuple[int, dict[str, Padded]]]:
        """Yield each clip's number, and the arrays and masks that batches have of it."""
        loader = latentcache.LatentLoader(self.url, batch_size=4, fields=[self.name], **options)
        for batch in loader:
            for n, key in enumerate(batch["key"]):
                found = {
                    array.name or "states": _sample(batch, self.reader.field.key(array), n)
                    for array in self.reader.field.arrays
                }
                yield int(key.partition(".")[0]), found


def _sample(batch: dict[str, Any], key: str, n: int) -> Padded:
    mask = batch.get(f"{key}_mask")
    return Padded(batch[key][n], None if mask is None else mask[n])


def check_family(url: str, name: str, folder: Path, dtype: str, texts: Sequence[str]) -> None:
    case = CASES[name]
    added = Added(url, case, *saved(name, folder), kind="text", dtype=dtype)
    assert added.reader.field.arrays[0].shape[0] == LENGTHS[name]
    added.check(texts)
    added.check_dropped()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name, dtype,
            marks=[] if name in DEFAULT and dtype == "float32" else [pytest.mark.long],
        )
        for name in CASES
        for dtype in DTYPES
    ],
)  # fmt: skip
def test_batches_have_what_the_pipeline_gives(
    name: str, dtype: str, cache: Cache, tmp_path: Path
) -> None:
    check_family(cache(FEW), name, tmp_path, dtype, FEW)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_batches_have_what_the_pipeline_gives_of_200_captions(
    name: str, dtype: str, cache: Cache, tmp_path: Path
) -> None:
    check_family(cache(captions(NUM)), name, tmp_path, dtype, captions(NUM))


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("num", [len(FEW), NUM])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", joint.CASES)
def test_batches_have_what_the_pipeline_gives_of_texts_with_pictures(
    name: str, dtype: str, num: int, cache: Cache, tmp_path: Path
) -> None:
    texts = FEW if num == len(FEW) else captions(NUM)
    case, url = joint.CASES[name], cache(texts)
    parts = joint.PARTS[case.parts]()
    several = name.endswith("plus")
    settings = {"images": ["same", "next"] if several else "first", "kind": "joint", "dtype": dtype}
    added = Added(url, case, save(tmp_path, parts), parts, **settings)

    def images(n: int) -> list[Image.Image]:
        numbers = [n, (n + 1) % num] if several else [n]
        return [picture(url, number) for number in numbers]

    added.check(texts, images)

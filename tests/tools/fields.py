"""Fields of small caches: configurations, and what the encoder of the tests gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

import latentcache
from latentcache.config.files import load_config
from latentcache.config.sections import Config
from latentcache.core.dtypes import Array, as_numpy, numpy_dtype
from latentcache.format.schemas import PROBE_SCHEMA, SOURCE_SCHEMA
from latentcache.format.snapshot import current_index, publish
from latentcache.planning.create import open_or_new, take_step
from latentcache.planning.grow import add_plan
from latentcache.planning.plan import make_plan
from latentcache.planning.planned import PlannedCache
from latentcache.planning.recipe import resolve_encoder
from latentcache.planning.step import Step
from tests.tools.caches import make_config, run_inline
from tests.tools.encoders.hashed_text import WIDTH, states
from tests.tools.planned import fill_cache

FAMILY = "tests.tools.encoders.hashed_text"

#: Of the cache of ten clips that the tests of jobs have.
CAPTIONS = [f"caption {n % 6}" for n in range(10)]


def text_field(**settings: Any) -> dict[str, Any]:
    """A text field of the encoder of the tests, of 32 tokens unless `length` says otherwise."""
    return {"kind": "text", "family": FAMILY, **settings}


def write_fields(folder: Path, **fields: Any) -> Path:
    """Write FIELD.yaml."""
    path = folder / f"{'-'.join(fields)}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def padded(text: str, length: int = 32, dtype: str = "bfloat16", side: str = "right") -> Array:
    """What a field with padding of zeros, or one with a mask, gives a model for a text: [length, WIDTH]."""
    own = states(text, length)
    whole = np.zeros((length, WIDTH), numpy_dtype(dtype))
    whole[slice(len(own)) if side == "right" else slice(length - len(own), None)] = own
    return whole


def cache_of(
    folder: Path,
    captions: Sequence[str | None],
    *,
    texts: Sequence[Sequence[str | None] | None] | None = None,
    filled: bool = True,
    clip: tuple[int, int, int] = (5, 64, 96),
    **cache: Any,
) -> PlannedCache:
    """A cache of one clip per caption, undecoded; texts: of each, a kept column of lists.

    clip: frames, height and width.
    """
    clips = {"frames": clip[0], "size": list(clip[1:])}
    path = make_config(folder, folder, str(folder / "cache"), cache=cache, clips=clips)
    config = load_config(str(path), [])
    spec, identity = resolve_encoder(config)
    planned = open_or_new(config, spec, identity)
    step = Step(kind="plan", corpus=str(folder))
    _add(step, planned, sources_of(captions, texts, clip=clip), config)
    taken = take_step(planned, step)
    assert taken is not None
    if filled:
        fill_cache(taken)
    return taken


def sources_of(
    captions: Sequence[str | None],
    texts: Any = None,
    first: int = 0,
    name: str = "v",
    clip: tuple[int, int, int] = (5, 64, 96),
) -> pa.Table:
    """Probed sources, one per caption, and a kept column `texts`."""
    rows = [
        {
            "name": f"{name}{n}",
            "url": f"/nowhere/{name}{n}.mp4",
            "kind": "video",
            "caption": caption,
            "frames": clip[0],
            "duration_s": clip[0] / 25,
            "fps": 25.0,
            "height": clip[1],
            "width": clip[2],
            "identity": f"{name}{n}",
            "texts": texts[n - first] if texts else None,
        }
        for n, caption in enumerate(captions, first)
    ]
    schema = pa.schema([*SOURCE_SCHEMA, *PROBE_SCHEMA, pa.field("texts", pa.list_(pa.string()))])
    return pa.Table.from_pylist(rows, schema=schema)


def _add(step: Step, planned: PlannedCache, sources: pa.Table, config: Config) -> None:
    spec = planned.manifest.spec
    plan = make_plan(sources, config.clips, spec, shard_clips=config.cache.shard_clips)
    stamps = pa.nulls(sources.num_rows, pa.string())
    add_plan(step, plan, sources.append_column("stamp", stamps))


def grow(
    planned: PlannedCache,
    captions: Sequence[str | None],
    lost: Sequence[str] = (),
    clip: tuple[int, int, int] = (5, 64, 96),
) -> PlannedCache:
    """Take new clips into a cache, as precompute does, and commit their latents.

    lost: kept columns that the corpus no longer has.
    """
    name = f"g{len(planned.manifest.generations)}_"
    sources = sources_of(captions, name=name, clip=clip)
    return grow_by(planned, sources.drop_columns(list(lost)))


def grow_by(planned: PlannedCache, sources: pa.Table) -> PlannedCache:
    """Take new sources into a cache, and commit their latents."""
    step = Step(kind="grow")
    _add(step, planned, sources, planned.config)
    taken = take_step(planned, step)
    assert taken is not None
    fill_cache(taken, seed=len(taken.manifest.generations))
    return taken


def relabel(planned: PlannedCache, captions: Mapping[str, str | None]) -> PlannedCache:
    """Change captions by key, as precompute does."""
    step = Step(kind="grow", num_relabelled=len(captions))
    for shard in planned.planned_shards():
        table = planned.plan.table(shard)
        keys, old = table["key"].to_pylist(), table["caption"].to_pylist()
        new = [captions.get(key, caption) for key, caption in zip(keys, old, strict=True)]
        if new != old:
            columns = table.select(["row", "caption", "texts"])
            step.columns[shard] = columns.set_column(1, "caption", pa.array(new, pa.string()))
    taken = take_step(planned, step)
    assert taken is not None
    publish(taken.storage, current_index(taken.storage, taken.manifest))
    return taken


def add(planned: PlannedCache, *args: str, status: int = 0, **fields: Any) -> str:
    """Run add-field on a cache in a folder; returns what it printed."""
    folder = Path(planned.storage.url)
    path = write_fields(folder.parent, **fields)
    found, printed = run_inline("add_field", folder, path, "run.runner=local", *args)
    assert found == status, printed
    return printed


def encoded(counted: Path) -> list[str]:
    """The texts that were encoded since, but those that stand for dropped ones."""
    lines = [line for line in counted.read_text().splitlines() if line] if counted.exists() else []
    counted.unlink(missing_ok=True)
    return sorted(lines)


def texts_of(url: str, field: str = "umt5", length: int = 32) -> dict[str, str | None]:
    """Each ok clip's caption, where the field holds that caption's states; None where it lacks the clip."""
    cache, found = latentcache.open_cache(url), {}
    for sample in (cache[n] for n in range(len(cache))):
        try:
            states_LD = as_numpy(sample[field])
        except KeyError:
            found[sample["key"]] = None
            continue
        np.testing.assert_array_equal(states_LD, padded(sample["caption"], length))
        found[sample["key"]] = sample["caption"]
    return found

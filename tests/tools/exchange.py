"""Caches to export: of any model class, with random latents, undecoded; and what an import gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import latentcache
from latentcache.config.files import load_config
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec, Normaliser
from latentcache.exchange.mark import MARK
from latentcache.format.schemas import PROBE_SCHEMA, SOURCE_SCHEMA
from latentcache.planning.create import open_or_new, take_step
from latentcache.planning.grow import add_plan
from latentcache.planning.plan import make_plan
from latentcache.planning.planned import PlannedCache
from latentcache.planning.recipe import resolve_encoder
from latentcache.planning.step import Step
from tests.tools.caches import make_config, run_inline
from tests.tools.planned import fill_cache

WAN, COGVIDEOX = "AutoencoderKLWan", "AutoencoderKLCogVideoX"
NAMES = ("a/one.mp4", "b/two_three.mp4", "four.mp4")


def spec_of(model_class: str = WAN, stored: str = "moments", **changes: Any) -> LatentSpec:
    """A spec of four channels whose mean and scale no type of 16 bits holds."""
    ids = stored == "ids"
    normaliser = Normaliser(
        kind="channel", shift=(0.1, -0.2, 0.3, 0.0), scale=(0.7, 1 / 3, 1.5, 2.0)
    )
    spec = LatentSpec(
        encoder="diffusers_video",
        model_class=model_class,
        channels=1 if ids else 4,
        stride=(1, 8, 8) if ids else (4, 8, 8),
        frame_rule=FrameRule() if ids else FrameRule(multiple=4, remainders=(1,)),
        stored=stored,
        dtype="uint32" if ids else "bfloat16",
        normaliser=Normaliser() if ids else normaliser,
        ids=IdSpec(codebook_size=1 << 18) if ids else None,
        pixel_layout="BCHW" if ids else "BCTHW",
    )
    return dataclasses.replace(spec, **changes)


def make_cache(
    folder: Path,
    spec: LatentSpec | None = None,
    *,
    name: str = "cache",
    names: Sequence[str] = NAMES,
    clips: int = 1,
    captions: Sequence[str | None] | None = None,
    sizes: Sequence[tuple[int, int]] = ((32, 48),),
    frames: int | Sequence[int] = 5,
) -> latentcache.Cache:
    """A cache of `clips` clips of each source; sizes (height, width), of one area, are given to sources
    in turn. Of several frames every source gives clips of each, as many as fit into `clips` of the most."""
    folder.mkdir(exist_ok=True)
    lengths = [frames] if isinstance(frames, int) else list(frames)
    num_frames = max(lengths) * clips
    area, ratios = sizes[0][0] * sizes[0][1], [width / height for height, width in sizes]
    clips_section = {
        "frames": lengths,
        **({"lengths": "each"} if len(lengths) > 1 else {}),
        "select": "all",
        "size": None,
        "buckets": {"area": area, "multiple": 16, "aspect_ratios": ratios},
    }
    path = make_config(folder, folder, str(folder / name), clips=clips_section)
    config = load_config(str(path), [])
    assert config.clips.sizes() == list(sizes)
    _, identity = resolve_encoder(config)
    planned = open_or_new(config, spec or spec_of(), identity)
    rows = [
        {
            "name": source,
            "url": f"/nowhere/{source}",
            "kind": "video",
            "caption": captions[n] if captions else f"caption {n}",
            "frames": num_frames,
            "duration_s": num_frames / 25,
            "fps": 25.0,
            "height": sizes[n % len(sizes)][0],
            "width": sizes[n % len(sizes)][1],
            "identity": source,
        }
        for n, source in enumerate(names)
    ]
    sources = pa.Table.from_pylist(rows, schema=pa.schema([*SOURCE_SCHEMA, *PROBE_SCHEMA]))
    plan = make_plan(sources, config.clips, planned.manifest.spec, shard_clips=3)
    step = Step(kind="plan")
    add_plan(step, plan, sources.append_column("stamp", pa.nulls(len(names), pa.string())))
    taken = take_step(planned, step)
    assert taken is not None
    # No row of it fails: what cannot be exported is tested by itself.
    _fill(taken)
    return latentcache.open_cache(str(folder / name))


def _fill(planned: PlannedCache) -> None:
    from tests.tools import planned as tool

    failed, tool.FAILED = tool.FAILED, set()
    try:
        fill_cache(planned)
    finally:
        tool.FAILED = failed


def run(job: str, *args: object, status: int = 0) -> str:
    """Run export or import in this process; returns what it printed."""
    found, printed = run_inline(job, *args)
    assert found == status, printed
    assert "Traceback" not in printed
    return printed


def export(cache: latentcache.Cache, out: Path, to: str, *args: object, status: int = 0) -> str:
    """Export a cache."""
    return run("export", cache.storage.url, out, "--to", to, *args, status=status)


def unmark(folder: Path) -> None:
    """Make an export a folder of which nothing says what it should hold, as those of trainers are."""
    (folder / MARK).unlink()


def take_in(
    layout: str, source: Path, target: Path, like: latentcache.Cache, *args: object
) -> latentcache.Cache:
    """Import a layout, and open what came of it."""
    run("import", layout, source, target, "--like", like.storage.url, *args)
    return latentcache.open_cache(str(target))

"""What a field would hold is refused before anything is planned where it cannot be."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from latentcache.config.fields import parse_field
from latentcache.errors import ConfigError
from latentcache.format.manifest import Provenance
from latentcache.planning.fields.describe import describe_field
from tests.tools.synthetic import make_manifest, make_spec


@pytest.mark.parametrize(
    "field",
    [
        {"kind": "visual", "of": "first"},
        {"kind": "visual", "of": "first_then_zeros"},
        {"kind": "visual", "of": "vace", "masks": "mask"},
        {"kind": "view"},
    ],
)
def test_conditions_of_an_encoder_of_ids_are_refused_with_what_there_is(
    field: dict[str, Any],
) -> None:
    spec = make_spec(dtype="uint16", stored="ids", exactness="exact")
    manifest = make_manifest(spec=spec, buckets={"5x32x32": 2})
    with pytest.raises(ConfigError, match=r"gives ids.*Use kind: raw.*image tower in `encoder`"):
        describe_field(parse_field("first", field), manifest)


def test_samples_that_no_shard_holds_are_refused_with_their_size() -> None:
    manifest = make_manifest(spec=make_spec(), buckets={"1x1088x1920": 1, "401x1088x1920": 1})
    with pytest.raises(
        ConfigError,
        match=r"of a clip of 401x1088x1920 it would store \[401, 1088, 1920, 3\] of uint8, 2.5 GB",
    ):
        describe_field(parse_field("frames", {"kind": "raw", "of": "clip"}), manifest)
    first = describe_field(parse_field("frames", {"kind": "raw", "of": "first"}), manifest)
    assert first.arrays[0].shape == (1,)


@pytest.mark.parametrize("origin", ["import", "sampler"])
@pytest.mark.parametrize(
    "field",
    [
        {"kind": "raw", "of": "first"},
        {"kind": "raw", "of": "clip", "column": "depth"},
        {"kind": "visual", "of": "first_then_zeros"},
        {"kind": "visual", "of": "vace", "masks": "mask"},
        {"kind": "audio", "seconds": 1, "rate": 16000},
        {"kind": "joint", "family": "hunyuan_video_i2v", "images": "first"},
    ],
)
def test_an_imported_cache_has_no_sources_to_make_a_field_of(
    field: dict[str, Any], origin: Literal["import", "sampler"]
) -> None:
    encoded = make_manifest(spec=make_spec(), buckets={"5x32x32": 2})
    manifest = dataclasses.replace(encoded, provenance=Provenance(kind=origin))
    with pytest.raises(
        ConfigError, match=r"was imported and has no pixels.*precompute.*write_field"
    ):
        describe_field(parse_field("first", field), manifest)


def test_an_imported_cache_takes_numbers_of_files() -> None:
    encoded = make_manifest(spec=make_spec(), buckets={"5x32x32": 2})
    manifest = dataclasses.replace(encoded, provenance=Provenance(kind="import"))
    field = {"kind": "array", "column": "pose", "shape": [4], "dtype": "float32"}
    assert describe_field(parse_field("pose", field), manifest).arrays[0].shape == (4,)

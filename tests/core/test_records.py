"""Records: frame rules, latent geometry and names, as properties."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.core.records import REASONS, Bucket, ClipResult, Shard
from latentcache.core.spec import ITEM_BYTES, FrameRule, IdSpec, LatentSpec, Normaliser
from latentcache.errors import ConfigError, GeometryError

WAN = FrameRule(multiple=4, remainders=(1,))
COGVIDEOX = FrameRule(multiple=8, remainders=(0, 1))


@st.composite
def rules(draw: st.DrawFn) -> FrameRule:
    multiple = draw(st.integers(1, 17))
    remainders = draw(st.sets(st.integers(0, multiple - 1), min_size=1))
    return FrameRule(
        multiple=multiple, remainders=tuple(sorted(remainders)), minimum=draw(st.integers(1, 40))
    )


def make_spec(**changes: Any) -> LatentSpec:
    fields: dict[str, Any] = {
        "encoder": "test",
        "model_class": "TestVAE",
        "channels": 16,
        "stride": (4, 8, 8),
        "frame_rule": WAN,
        "stored": "moments",
        "dtype": "bfloat16",
    }
    return LatentSpec(**{**fields, **changes})


# Frame rules


@pytest.mark.slow
@given(rules(), st.integers(-5, 200))
def test_the_longest_is_the_largest_legal_number_up_to_a_limit(rule: FrameRule, limit: int) -> None:
    legal = [n for n in range(limit + 1) if rule.is_legal(n)]
    assert rule.longest(limit) == (legal[-1] if legal else None)


@pytest.mark.slow
@given(rules(), st.integers(-5, 200))
def test_the_shortest_is_the_smallest_legal_number_from_a_limit(
    rule: FrameRule, limit: int
) -> None:
    assert rule.shortest(limit) == next(n for n in range(max(limit, 0), 300) if rule.is_legal(n))


@pytest.mark.slow
@given(rules(), st.integers(1, 200))
def test_the_error_for_illegal_frames_names_the_nearest_legal_ones(
    rule: FrameRule, frames: int
) -> None:
    spec = make_spec(frame_rule=rule)
    if rule.is_legal(frames):
        spec.check_frames(frames)
        return
    with pytest.raises(GeometryError) as caught:
        spec.check_frames(frames)
    near = [rule.longest(frames), rule.shortest(frames)]
    assert str(caught.value).endswith(f"to {' or '.join(str(n) for n in near if n)}.")


@pytest.mark.parametrize(
    ("rule", "legal"),
    [
        (FrameRule(), [1, 2, 3, 4, 5]),
        (WAN, [1, 5, 9, 13, 17]),
        (COGVIDEOX, [1, 8, 9, 16, 17]),
        (FrameRule(multiple=17, minimum=17), [17, 34, 51]),
    ],
)
def test_rules_of_known_encoders(rule: FrameRule, legal: list[int]) -> None:
    assert [n for n in range(legal[-1] + 1) if rule.is_legal(n)] == legal


def test_rules_are_described_in_the_words_of_the_field() -> None:
    assert WAN.describe() == "4k+1"
    assert COGVIDEOX.describe() == "8k or 8k+1"
    assert FrameRule(minimum=2).describe() == "any number from 2"
    assert FrameRule(multiple=17, minimum=17).describe() == "17k, at least 17"


@pytest.mark.slow
@given(rules(), st.integers(0, 200), st.integers(1, 200))
def test_a_rule_with_a_maximum_takes_what_is_legal_up_to_it(
    rule: FrameRule, maximum: int, frames: int
) -> None:
    bounded = dataclasses.replace(rule, maximum=maximum)
    legal = [n for n in range(maximum + 1) if rule.is_legal(n)]
    assert [n for n in range(220) if bounded.is_legal(n)] == legal
    assert bounded.longest(frames) == max((n for n in legal if n <= frames), default=None)
    assert bounded.shortest(frames) == min((n for n in legal if n >= frames), default=None)
    near = {bounded.longest(frames), bounded.shortest(frames)} - {None}
    assert set(bounded.nearest(frames)) == near


def test_a_rule_with_a_maximum_says_so() -> None:
    rule = FrameRule(multiple=8, remainders=(1,), maximum=121)
    assert rule.describe() == "8k+1, at most 121"
    with pytest.raises(GeometryError, match=r"at most 121 frames per clip, not 129.*to 121\."):
        make_spec(stride=(8, 8, 8), frame_rule=rule).check_frames(129)


@pytest.mark.parametrize("fields", [{"multiple": 0}, {"multiple": 4, "remainders": (4,)}])
def test_what_is_no_rule_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not a frame rule"):
        FrameRule(**fields)


# Latent geometry


@pytest.mark.slow
@given(
    frames=st.integers(1, 200),
    stride=st.sampled_from([1, 2, 4, 8]),
)
def test_pixel_frames_of_the_latent_frames_are_a_partition(frames: int, stride: int) -> None:
    spec = make_spec(stride=(stride, 8, 8), frame_rule=FrameRule())
    t = spec.latent_shape(frames, 8, 8)[1]
    ranges = [spec.pixel_frames(i, frames) for i in range(t)]
    assert [n for start, stop in ranges for n in range(start, stop)] == list(range(frames))
    assert all(stop - start == stride for start, stop in ranges[1:])


@pytest.mark.parametrize(
    ("rule", "frames", "ranges"),
    [
        (WAN, 9, [(0, 1), (1, 5), (5, 9)]),
        (WAN, 1, [(0, 1)]),
        (COGVIDEOX, 9, [(0, 1), (1, 5), (5, 9)]),
        (COGVIDEOX, 8, [(0, 4), (4, 8)]),
    ],
)
def test_the_first_frame_stands_alone_where_one_is_left_over(
    rule: FrameRule, frames: int, ranges: list[tuple[int, int]]
) -> None:
    spec = make_spec(frame_rule=rule)
    assert [spec.pixel_frames(t, frames) for t in range(len(ranges))] == ranges
    for t in (-1, len(ranges)):
        with pytest.raises(
            IndexError, match=f"has {len(ranges)} latent frames, so none with number {t}"
        ):
            spec.pixel_frames(t, frames)


def test_the_latent_shape_counts_the_log_variance_of_moments() -> None:
    assert make_spec().latent_shape(81, 480, 832) == (32, 21, 60, 104)
    assert make_spec(stored="mean").latent_shape(81, 480, 832) == (16, 21, 60, 104)
    assert make_spec(stride=(4, 16, 8)).latent_shape(1, 64, 64) == (32, 1, 4, 8)
    assert make_spec(stored="mean", stride=(1, 8, 8), frame_rule=FrameRule()).latent_shape(
        1, 8, 16
    ) == (16, 1, 1, 2)


@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_an_illegal_size_names_a_legal_one_near(height: int, width: int) -> None:
    spec = make_spec(stride=(4, 16, 8))
    if height % 16 == 0 and width % 8 == 0:
        spec.check_size(height, width)
        return
    with pytest.raises(GeometryError, match=rf"height by 16 and width by 8; {height}x{width}") as e:
        spec.check_size(height, width)
    near = [int(n) for n in str(e.value).rstrip(".").rsplit(" ", 1)[1].split("x")]
    spec.check_size(*near)
    assert abs(near[0] - height) <= max(8, 16 - height)
    assert abs(near[1] - width) <= max(4, 8 - width)


# The spec


@pytest.mark.slow
@given(
    rule=rules(),
    dtype=st.sampled_from(sorted(ITEM_BYTES)),
    size=st.none() | st.just((256, 256)),
    stored=st.sampled_from(["moments", "mean", "sample", "ids"]),
    weights=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    scale=st.lists(st.floats(0.01, 10), min_size=1, max_size=16),
)
def test_a_spec_survives_json(
    rule: FrameRule, dtype: str, stored: Any, weights: str | None, scale: list[float], size: Any
) -> None:
    spec = make_spec(
        frame_rule=rule,
        dtype=dtype,
        stored=stored,
        fixed_size=size,
        ids=IdSpec(codebook_size=8, scales=(1, 2)) if stored == "ids" else None,
        weights_sha256=weights,
        normaliser=Normaliser(kind="channel", shift=(0.5,), scale=tuple(scale)),
        packages={"torch": "2.9"},
    )
    again = LatentSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dtype": "fp8"}, "unknown stored dtype 'fp8'; known: bfloat16, float16"),
        ({"channels": 0}, "channels 0"),
        ({"stride": (0, 8, 8)}, r"stride \(0, 8, 8\)"),
    ],
)
def test_what_is_no_spec_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make_spec(**changes)


@pytest.mark.parametrize(
    ("scales", "shape"), [((), (3, 4, 8)), ((1, 2, 4), (21,))], ids=["grid", "scales"]
)
def test_ids_have_no_channels(scales: tuple[int, ...], shape: tuple[int, ...]) -> None:
    ids = IdSpec(codebook_size=1 << 16, scales=scales)
    spec = make_spec(stored="ids", dtype=ids.dtype, channels=1, ids=ids)
    assert spec.latent_shape(9, 32, 64) == shape


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(256, "uint8"), (257, "uint16"), (1 << 16, "uint16"), ((1 << 16) + 1, "uint32")],
)
def test_ids_are_stored_in_the_smallest_type_that_holds_them(size: int, dtype: str) -> None:
    assert IdSpec(codebook_size=size).dtype == dtype


def test_ids_and_their_meaning_come_together() -> None:
    for changes in ({"stored": "ids"}, {"ids": IdSpec(codebook_size=8)}):
        with pytest.raises(ConfigError, match="if, and only if, ids are stored"):
            make_spec(**changes)


def test_a_size_rule_beyond_the_stride_is_held_by_height_and_width() -> None:
    rules = (
        FrameRule(multiple=200, remainders=(120,), minimum=320),
        FrameRule(multiple=240, remainders=(80,), minimum=320),
    )
    spec = make_spec(size_rules=rules)
    assert spec.latent_shape(81, 720, 1280) == (32, 21, 90, 160)
    with pytest.raises(GeometryError, match=r"not 480: it would.*Use a height of 320 or 520\."):
        spec.check_size(480, 1280)
    with pytest.raises(GeometryError, match=r"a width of 240k\+80, at least 320 pixels, not 832"):
        spec.check_size(720, 832)
    assert LatentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_an_encoder_of_one_size_takes_no_other() -> None:
    spec = make_spec(fixed_size=(256, 256))
    spec.check_size(256, 256)
    with pytest.raises(GeometryError, match=r"takes only 256x256 pixels, not 256x512\. Set clips"):
        spec.check_size(256, 512)


@pytest.mark.parametrize("fields", [{"scale": (1.0, 0.0)}, {"shift": ()}, {"scale": ()}])
def test_what_is_no_normaliser_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not a normaliser"):
        Normaliser(**fields)


# Buckets, shards, results


@given(*[st.integers(1, 10_000)] * 3)
def test_a_bucket_is_read_from_its_name(frames: int, height: int, width: int) -> None:
    bucket = Bucket(frames=frames, height=height, width=width)
    assert Bucket.parse(bucket.name) == bucket


@pytest.mark.parametrize(
    "name", ["", "81", "81x480", "81x480x0", "81x480x832x3", "-1x8x8", "²x8x8"]
)
def test_what_is_no_bucket_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a bucket; buckets are named FRAMESxHEIGHTxWIDTH"):
        Bucket.parse(name)


def test_buckets_sort_by_their_numbers() -> None:
    buckets = [Bucket(frames=f, height=h, width=8) for f, h in [(9, 8), (81, 8), (9, 16)]]
    assert [b.name for b in sorted(buckets)] == ["9x8x8", "9x16x8", "81x8x8"]


def test_a_shard_is_named_by_bucket_and_index() -> None:
    assert Shard(bucket=Bucket.parse("1x8x8"), index=3, clips=[]).name == "1x8x8/3"


def test_a_result_is_ok_or_has_a_known_reason() -> None:
    assert ClipResult().ok
    assert not ClipResult(reason="corrupt").ok
    with pytest.raises(ConfigError, match="unknown reason 'bored'"):
        ClipResult(reason="bored")
    assert all(text and not text.endswith(".") for text in REASONS.values())

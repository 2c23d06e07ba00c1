"""The configuration: what is accepted, and the words in which everything else is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.config.files import apply_overrides, load_config, load_stored_config
from latentcache.config.geometry import BucketsConfig, aspect_ratio
from latentcache.config.sections import (
    NOT_OF_A_CACHE,
    Config,
    CorpusConfig,
)
from latentcache.config.yaml import parse_yaml
from latentcache.errors import ConfigError

SMALLEST = """\
corpus: {source: /data}
clips: {frames: 49, size: [480, 720]}
encoder: {kind: dct}
cache: {url: /cache}
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text(SMALLEST)
    return str(tmp_path / "c.yaml")


def test_the_smallest_configuration_has_the_documented_defaults(path: str) -> None:
    config = load_config(path)
    assert config.clips.frame_counts == [49]
    assert config.clips.sizes() == [(480, 720)]
    assert config.clips.select == "first"
    assert config.clips.too_short == "record"
    assert (config.cache.format, config.cache.shard_clips) == ("zarr", 64)
    assert (config.cache.compression.codec, config.cache.compression.level) == ("zstd", 5)
    assert (config.run.workers, config.run.max_retries, config.run.decode_timeout_s) == (
        "auto",
        3,
        60.0,
    )


def test_a_configuration_does_not_change(path: str) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(path).run.max_retries = 5  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    todo: list[Any] = [Config]
    for model in todo:
        for name, field in model.model_fields.items():
            options = [field.annotation, *getattr(field.annotation, "__args__", ())]
            inner = [o for o in options if hasattr(o, "model_fields")]
            todo.extend(inner)
            assert inner or field.description, f"{model.__name__}.{name}"


def refusals(path: str, *overrides: str) -> list[str]:
    """Return the lines of the ConfigError, without the first, which names the file."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}:"
    return [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "cahce.url=x",
            "cahce: unknown key. Did you mean 'cache'? "
            "Known here: corpus, clips, encoder, cache, run, "
            "quality, fields",
        ),
        (
            "cache.compression.levle=3",
            "cache.compression.levle: unknown key. Did you mean 'level'? Known here: codec, level",
        ),
        (
            "clips.buckets={area: 9, multiple: 1, aspect_ratios: [1], zzz: 1}",
            "clips.buckets.zzz: unknown key. Known here: area, multiple, aspect_ratios, sizes, nearest, "
            "ratio_of, ratio_decimals, square",
        ),
        ("corpus.source=", "corpus.source: should be a string; got None"),
        ("corpus.keep=[2024]", "corpus.keep.0: should be a string; got 2024. Write it in quotes"),
        ("corpus.keep=[true]", "corpus.keep.0: should be a string; got True. Write it in quotes"),
        (
            "cache.storage_options={client: {verify: No}}",
            "cache.storage_options: verify is the text 'No' here; write true or false",
        ),
        ("cache.url=''", "cache.url: should have at least 1 character; got ''"),
        ("clips.frames=-1", "clips.frames: should be greater than 0 or a list; got -1"),
        ("clips.frames=[49, 0]", "clips.frames.1: should be greater than 0; got 0"),
        ("clips.frames=many", "clips.frames: should be a whole number or a list; got 'many'"),
        ("clips.size=[480]", "clips.size.1: required, but not given"),
        ("clips.size=[1, 2, 3]", "clips.size: should have at most 2 items, not 3; got [1, 2, 3]"),
        ("clips.fps=.nan", "clips.fps: should be a finite number; got nan"),
        ("clips.fps=fast", "clips.fps: should be a number; got 'fast'"),
        ("run.workers=2.5", "run.workers: should be a whole number or 'auto'; got 2.5"),
        (
            "cache.dtype=fp16",
            "cache.dtype: should be 'bfloat16', 'float16' or 'float32'; got 'fp16'",
        ),
        ("clips=", "clips: should be a section with keys; got None"),
        ("encoder=dct", "encoder: should be a section with keys; got 'dct'"),
        ("encoder={}", "encoder: needs a `kind`, such as `kind: dct`"),
        (
            "clips.select=rand:4",
            "clips.select: 'rand:4' is not one of: first, head, middle, all, chunk, slide, uniform:K, "
            "linspace:K, random:K (K >= 1)",
        ),
        ("clips.stride=4", "clips: `stride` is for `select: all`; remove it or change `select`"),
        (
            "corpus.columns={vidoe: x}",
            "corpus.columns: unknown role 'vidoe'. Did you mean 'video'? "
            "Roles: video, image, caption, key, frames, fps, height, width",
        ),
        (
            "corpus.columns={caption: x}",
            "corpus.columns: needs a role `video` or `image`: the column of the paths",
        ),
        (
            "cache.url=s3://me:hunter22@bucket",
            "cache.url: the URL carries a password, which the cache would store. Remove it, and "
            "give credentials in storage_options or in the environment",
        ),
        ("cache.storage_options=hunter22", "cache.storage_options: should be a section with keys"),
    ],
)
def test_every_problem_is_one_line_that_says_where_and_what(
    path: str, override: str, line: str
) -> None:
    assert refusals(path, override) == [line]


def test_all_problems_come_at_once(path: str) -> None:
    assert len(refusals(path, "clips.frames=0", "run.wrokers=2", "cache.format=npz")) == 3


@pytest.mark.parametrize("select", ["uniform:0", "random:-1", "uniform:", "ALL", "random:1.5", ""])
def test_a_bad_selection_is_refused(path: str, select: str) -> None:
    assert "is not one of: first, head" in refusals(path, f"clips.select='{select}'")[0]


@pytest.mark.parametrize(
    "overrides", [["clips.size="], ["clips.buckets={area: 9, multiple: 1, aspect_ratios: [1]}"]]
)
def test_a_size_or_buckets_is_given_and_not_both(path: str, overrides: list[str]) -> None:
    assert refusals(path, *overrides)[0].startswith(
        "clips: give exactly one of `size: [height, width]` and `buckets"
    )


# Overrides


def test_overrides_are_yaml_at_dotted_keys(path: str) -> None:
    config = load_config(
        path,
        [
            "clips.frames=[81, 49, 81]",
            "clips.size=[256,256]",
            "cache.compression.level=9",
            "cache.url=s3://b/a=b",
            "encoder.model.name=x",
            "clips.fps=16",
        ],
    )
    assert config.clips.frame_counts == [81, 49]
    assert config.clips.sizes() == [(256, 256)]
    assert config.cache.compression.level == 9
    assert config.cache.url == "s3://b/a=b"
    assert config.encoder == {"kind": "dct", "model": {"name": "x"}}
    assert config.clips.fps == 16.0


def test_the_last_override_wins_and_the_data_stays(path: str) -> None:
    data = {"a": {"b": 1}}
    before = copy.deepcopy(data)
    assert apply_overrides(data, ["a.b=2", "a.c=3", "a.b=4"]) == {"a": {"b": 4, "c": 3}}
    assert data == before


@pytest.mark.parametrize("override", ["run.workers", "=3", "run..workers=3", ".=1"])
def test_what_is_no_override_is_refused(path: str, override: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an override; write section\.key=value"):
        load_config(path, [override])


def test_an_override_into_a_value_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"'clips.frames.0=3': 'frames' is a value, not a sec"):
        load_config(path, ["clips.frames.0=3"])


def test_an_override_that_is_not_yaml_is_refused_in_one_line(path: str) -> None:
    with pytest.raises(ConfigError, match=r"'clips.size=\[1': the value is not YAML: .*") as caught:
        load_config(path, ["clips.size=[1"])
    assert len(str(caught.value).splitlines()) == 1


# Files


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.yaml"):
        with pytest.raises(ConfigError, match=f"cannot read the config file '{path}'"):
            load_config(str(path))
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9")
    with pytest.raises(ConfigError, match=r"cannot read the config file .*utf-8"):
        load_config(str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [1\nb: 2", r"is not YAML: .* \(line 2, column 2\)"),
        ("a:\n\t- b", r"is not YAML: .*character '\\t'.* \(line 2, column 1\)"),
        ("a: 1\nb: 2\na: 3", r"is not YAML: the key 'a' is given twice \(line 3, column 1\)"),
        ("a: !!python/object:os.system {}", "is not YAML: could not determine a constructor"),
        ("", "holds no configuration"),
        ("# nothing", "holds no configuration"),
        ("- a", "holds no configuration"),
    ],
)
def test_a_file_that_is_no_configuration_says_why(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"c\.yaml {why}") as caught:
        load_config(str(tmp_path / "c.yaml"))
    assert len(str(caught.value).splitlines()) == 1


def test_numbers_with_exponents_are_numbers_and_ratios_are_text(path: str) -> None:
    config = load_config(
        path,
        ["clips.size=", "clips.buckets={area: 1e6, multiple: 16, aspect_ratios: [16:9, 9:16]}"],
    )
    assert config.clips.sizes() == [(752, 1328), (1328, 752)]


@pytest.mark.parametrize(
    "word", ["yes", "No", "on", "OFF", "y", "2024-05-01", "12:30:00", "=", "~x"]
)
def test_what_yaml_1_1_takes_for_something_else_is_text(path: str, word: str) -> None:
    config = load_config(
        path, [f"corpus.keep=[id, {word}]", f"corpus.columns={{video: {word}, caption: on}}"]
    )
    assert config.corpus.keep == ["id", word]
    assert config.corpus.columns == {"video": word, "caption": "on"}
    assert parse_yaml(f"{word}: 1") == {word: 1}


def test_booleans_are_those_of_yaml_1_2() -> None:
    assert parse_yaml("[true, False, TRUE, false, 'true']") == [True, False, True, False, "true"]


# Secrets


@pytest.mark.parametrize(
    "override",
    [
        "cache.storage_options.key=[hunter22",
        "cache.storage_options.key=*hunter22",
        "cache.storage_options..key=hunter22",
        "cache.storage_options=hunter22",
    ],
)
def test_the_value_of_a_storage_option_is_never_shown(path: str, override: str) -> None:
    for others in ([], ["cache.storage_options.key.x=hunter22"]):
        with pytest.raises(ConfigError) as caught:
            load_config(path, [override, *others])
        assert "hunter22" not in str(caught.value)


def test_what_is_stored_has_no_storage_options_and_no_url_and_reads_back(path: str) -> None:
    config = load_config(
        path,
        ["cache.storage_options={key: hunter22}", "corpus.storage_options.client.secret=hunter22"],
    )
    assert config.corpus.storage_options == {"client": {"secret": "hunter22"}}
    stored = config.without_secrets()
    assert "hunter22" not in str(stored)
    assert "storage_options" not in str(stored)
    again = load_stored_config(stored, url="/moved", storage_options={"key": "k"})
    assert (again.cache.url, again.cache.storage_options) == ("/moved", {"key": "k"})
    assert again.without_secrets() == stored


@pytest.mark.parametrize(("section", "key"), NOT_OF_A_CACHE)
def test_a_cache_brings_no_trust_along(path: str, section: str, key: str) -> None:
    """A stranger's cache.json may hold anything."""
    stored = load_config(path).without_secrets()
    values = {"schemes": ["reference"], "ray_address": "ray://elsewhere:1"}
    stored[section] = {
        **stored[section],
        key: values.get(key, {"endpoint_url": "http://elsewhere"}),
    }
    config = load_stored_config(stored, url="/c", storage_options={})
    assert "elsewhere" not in str(config.model_dump())
    assert "reference" not in str(config.model_dump())


def test_trust_is_not_stored(path: str) -> None:
    config = load_config(path, ["run.ray_address=here:1", "corpus.schemes=[zip]"])
    assert (config.run.ray_address, config.corpus.schemes) == ("here:1", ["zip"])
    stored = config.without_secrets()
    assert not [(s, key) for s, key in NOT_OF_A_CACHE if key in stored[s]]
    again = load_stored_config(
        stored, url="/c", storage_options={}, overrides=["corpus.schemes=[zip]"]
    )
    assert again.corpus.schemes == ["zip"]


@pytest.mark.parametrize("kind", ["os", "package.module", "package:name", ".x", "package.module:y"])
def test_a_cache_names_no_module(path: str, kind: str) -> None:
    stored = load_config(path).without_secrets()
    stored["encoder"] = {"kind": kind}
    if kind == "os":  # no module's name in a configuration, and refused as an unknown kind
        load_stored_config(stored, url="/c", storage_options={})
        return
    with pytest.raises(ConfigError, match=r"--allow-encoder .* Nothing|Nothing was imported"):
        load_stored_config(stored, url="/c", storage_options={})
    allowed = [kind.partition(":")[0]]
    load_stored_config(stored, url="/c", storage_options={}, allowed_encoders=allowed)
    load_stored_config(stored, url="/c", storage_options={}, overrides=[f"encoder.kind='{kind}'"])
    with pytest.raises(ConfigError, match="Nothing was imported"):
        load_stored_config(stored, url="/c", storage_options={}, allowed_encoders=["package.mod"])


def test_a_stored_configuration_takes_overrides(path: str) -> None:
    stored = load_config(path).without_secrets()
    config = load_stored_config(
        stored, url="/c", storage_options={}, overrides=["run.runner=local"]
    )
    assert config.run.runner == "local"
    with pytest.raises(ConfigError, match=r"the cache's configuration:\n  run.runer: unknown key"):
        load_stored_config(stored, url="/c", storage_options={}, overrides=["run.runer=local"])


# Sizes


@pytest.mark.parametrize(
    ("text", "ratio"), [("16:9", 16 / 9), (1.78, 1.78), ("1.5", 1.5), (2, 2.0), ("2.39:1", 2.39)]
)
def test_reads_aspect_ratios(text: float | str, ratio: float) -> None:
    assert aspect_ratio(text) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["x", "16:0", "-1", 0, "1:2:3", "nan", "inf", "", ":"])
def test_refuses_what_is_no_aspect_ratio(text: float | str) -> None:
    with pytest.raises(ValueError, match=r"is not an aspect ratio; write 1\.78 or '16:9'"):
        aspect_ratio(text)


@given(
    area=st.integers(64 * 64, 4096 * 4096),
    multiple=st.sampled_from([8, 16, 32]),
    ratio=st.floats(0.25, 4.0),
)
def test_sizes_are_multiples_of_about_the_area(area: int, multiple: int, ratio: float) -> None:
    config = BucketsConfig(area=area, multiple=multiple, aspect_ratios=[ratio])
    [(height, width)] = config.all_sizes()
    assert height % multiple == width % multiple == 0
    assert abs(height - (area / ratio) ** 0.5) <= max(
        multiple / 2, multiple - (area / ratio) ** 0.5
    )
    assert abs(width - (area * ratio) ** 0.5) <= max(multiple / 2, multiple - (area * ratio) ** 0.5)


def test_equal_sizes_come_once_in_the_order_given() -> None:
    config = BucketsConfig(area=480 * 720, multiple=16, aspect_ratios=["3:2", 1.5, "1:1", "2:3"])
    assert config.all_sizes() == [(480, 720), (592, 592), (720, 480)]


@pytest.mark.parametrize("source", ["sftp://me@host/a", "abfs://box@account/a", "s3://b/a@b:c"])
def test_a_url_without_a_password_is_taken(source: str) -> None:
    assert CorpusConfig(source=source).source == source

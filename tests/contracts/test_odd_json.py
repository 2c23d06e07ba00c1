"""Readers of JSON from storage and from strangers: other shapes are read, or refused in words."""

from __future__ import annotations

import dataclasses
import io
import json
import tomllib
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentcache
from jobs.training import checkpoints
from latentcache.config.files import validate
from latentcache.config.sections import Config
from latentcache.config.trainers import convert
from latentcache.core.json_text import parse_json
from latentcache.corpus.saved_probes import FOLDER, SavedProbes
from latentcache.corpus.saved_probes import SCHEMA as PROBED
from latentcache.encoders import resolve
from latentcache.encoders.diffusers.weights import locate
from latentcache.errors import ClipError, ConfigError, CorruptionError, LatentCacheError
from latentcache.exchange import export
from latentcache.exchange.layouts import get_layout
from latentcache.format import checksum
from latentcache.format.fields.commit import OTHER_OBJECTS, other_objects
from latentcache.format.fields.manifest import FieldManifest, read_field
from latentcache.format.fields.nulls import NULLS_SCHEMA, Null, create_nulls, read_nulls
from latentcache.format.fields.paths import field_json_path, nulls_path
from latentcache.format.generations import Generation, read_generations
from latentcache.format.lease import Lease, read_lease
from latentcache.format.manifest import Manifest
from latentcache.format.paths import INDEX, LEASE, generation_path
from latentcache.format.safetensors import read_float32
from latentcache.format.schemas import SHARD_FACTS, object_facts, plan_facts
from latentcache.format.snapshot import INDEX_FACTS, check_index, read_index
from latentcache.format.tables import to_parquet
from latentcache.inspecting.array_metadata import metadata_problem
from latentcache.running.array_files import parse_array
from latentcache.running.log_lines import read_line
from latentcache.storage.folder import Storage
from tests.jobs.test_init_from import DIFFUSION_PIPE, FINETRAINERS, MUSUBI, SIMPLETUNER
from tests.tools.exchange import export as write_export
from tests.tools.exchange import make_cache, spec_of
from tests.tools.fields import add, cache_of, text_field
from tests.tools.odd_json import FILES, sealed, spoilt
from tests.tools.synthetic import Synthetic, write_cache
from tests.tools.tiny_models import save

Read = Callable[[bytes], object]
#: Beside the errors of this package, what a reader's docstring says that it raises.
OWN = (LatentCacheError,)
#: Of documents with many values: a prime that no number of values has as a factor.
EVERY = 17


def survives(
    read: Read, texts: Iterable[bytes], allowed: tuple[type[Exception], ...] = OWN
) -> None:
    """Each text is read, or refused by an error that says what is wrong."""
    faults, num = [], 0
    for text in texts:
        num += 1
        try:
            read(text)
        except allowed as error:
            if not str(error).strip() or len(str(error)) > 4000:
                faults.append(
                    f"{text[:80]!r}: {type(error).__name__} of {len(str(error))} characters"
                )
        except Exception as error:  # noqa: BLE001 - what the test looks for
            faults.append(f"{text[:200]!r}: {type(error).__name__}: {str(error)[:100]}")
    assert num > len(FILES)
    assert not faults, f"{len(faults)} of {num}:\n" + "\n".join(faults[:20])


def of(document: Any, every: int = 1) -> list[bytes]:
    """Whole files of other JSON, and a sound document spoilt; every: takes each Nth of these."""
    return [*FILES, *list(spoilt(document))[::every]]


@pytest.fixture(scope="module", name="written")
def written_fixture(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_cache(str(tmp_path_factory.mktemp("cache")), buckets={"5x32x32": 8})


@pytest.fixture
def storage() -> Storage:
    return Storage(f"memory://json-{uuid.uuid4().hex}")


def sealed_document(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(data)
    del document[checksum.KEY]
    return document


def test_parsing_raises_one_kind_of_error() -> None:
    survives(parse_json, [*FILES, *FILES], (ValueError,))


@pytest.mark.slow
def test_cache_json(written: Synthetic) -> None:
    document = sealed_document(written.manifest.to_bytes())
    survives(lambda text: Manifest.from_bytes(sealed(text)), of(document, EVERY))


@pytest.mark.slow
def test_a_generation(written: Synthetic, storage: Storage) -> None:
    generation: Generation = written.manifest.generations[0]

    def read(text: bytes) -> None:
        storage.write(generation_path(1), sealed(text))
        read_generations(storage, ())

    survives(read, of(sealed_document(generation.to_bytes()), EVERY))


def test_a_lease(storage: Storage) -> None:
    lease = Lease(token="t", host="h", pid=1, place=None, started=None, taken_s=1.0, expires_s=2.0)

    def read(text: bytes) -> None:
        storage.write(LEASE, sealed(text))
        read_lease(storage)

    survives(read, of(dataclasses.asdict(lease)))


def with_facts(table: pa.Table, facts: dict[str, bytes]) -> bytes:
    """A table of a cache whose metadata are these texts, sealed."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata())
        writer.add_key_value_metadata({**facts, checksum.KEY: checksum.EMPTY.encode()})
    with buffer.getbuffer() as data:
        checksum.seal_parquet(data)
    return buffer.getvalue()


@pytest.mark.slow
def test_a_snapshot(written: Synthetic, storage: Storage) -> None:
    table = read_index(written.storage)

    def read(text: bytes) -> None:
        storage.write(INDEX, with_facts(table, {INDEX_FACTS: text}))
        try:
            check_index(read_index(storage), written.manifest)
        except ValueError as error:  # which its docstring names
            raise CorruptionError(str(error)) from None

    survives(read, of(json.loads(table.schema.metadata[INDEX_FACTS.encode()]), EVERY))


def test_the_facts_of_shards() -> None:
    facts = {"fingerprint": "f", "object": {"bytes": 3, "crc32c": 5}}
    table = pa.table({"a": [1]})

    def read(text: bytes) -> None:
        object_facts(table.replace_schema_metadata({SHARD_FACTS: text}), "f")

    survives(read, of(facts), (ValueError,))

    def read_others(text: bytes) -> None:
        other_objects(table.replace_schema_metadata({OTHER_OBJECTS: text}))

    survives(read_others, of({"mask": {"bytes": 3, "crc32c": 5}}), (ValueError,))


def test_saved_probes_of_another_shape_are_probed_again(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    saved = SavedProbes(storage, 100)
    sources = pa.table({"url": ["a.mp4"]})
    path = f"{FOLDER}/{'0' * 12}-000001.parquet"
    conditions = {**saved._conditions, "written_s": 1e12}
    storage.write(
        path, with_facts(PROBED.empty_table(), {"latentcache.probed": json.dumps(conditions)})
    )
    assert saved.find(sources) is not None  # it is sound

    def read(text: bytes) -> None:
        storage.write(path, with_facts(PROBED.empty_table(), {"latentcache.probed": text}))
        saved.find(sources)

    survives(read, of(conditions), ())
    assert "is skipped, and its sources are probed again: it is nested too deep" in caplog.text


@pytest.fixture(scope="module", name="field")
def field_fixture(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Storage, Manifest, FieldManifest]:
    folder = tmp_path_factory.mktemp("field")
    planned = cache_of(folder, ["a", "b"])
    add(planned, umt5=text_field(length=8, missing="empty"))
    cache = latentcache.open_cache(planned.storage.url)
    return cache.storage, cache.manifest, read_field(cache.storage, "umt5", cache.manifest)


def test_the_nulls_of_a_field(
    field: tuple[Storage, Manifest, FieldManifest], storage: Storage
) -> None:
    _, _, known = field
    (sound,) = read_nulls(field[0], known).values()
    assert isinstance(sound, Null)
    create_nulls(storage, known, [sound])
    assert [*read_nulls(storage, known)] == [sound.name]
    arrays = [list(array.shape) for array in sound.arrays]

    def read(text: bytes) -> None:
        row = {
            "name": "null", "text": "", "tokens": 1, "lost_tokens": 0, "message": None,
            "shapes": [text.decode("utf-8", "replace")] * len(arrays),
            "values": [array.tobytes() for array in sound.arrays],
        }  # fmt: skip
        table = pa.Table.from_pylist([row], schema=NULLS_SCHEMA)
        storage.write(nulls_path(known.name), to_parquet(table, plan_facts(known.fingerprint)))
        read_nulls(storage, known)

    survives(read, of(arrays[0]), (CorruptionError,))
    deep = b"[" * 100_000
    with pytest.raises(
        CorruptionError, match="holds no texts of this field: it is nested too deep"
    ):
        read(deep)


@pytest.mark.slow
def test_field_json(field: tuple[Storage, Manifest, FieldManifest], storage: Storage) -> None:
    source, manifest, known = field
    document = sealed_document(source.read(field_json_path(known.name)))

    def read(text: bytes) -> None:
        storage.write(field_json_path(known.name), sealed(text))
        read_field(storage, known.name, manifest)

    survives(read, of(document, EVERY))


def test_metadata_of_arrays(storage: Storage) -> None:
    sound = {"node_type": "array", "shape": [1, 2], "data_type": "uint8"}

    def read(text: bytes) -> None:
        storage.write("zarr.json", sealed(text))
        metadata_problem(storage, "zarr.json", json.dumps(sound).encode(), "cache.json")

    survives(read, of(sound))


def test_arrays_in_files() -> None:
    header = {"a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}

    def file(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + bytes(8)

    survives(lambda text: read_float32(file(text)), of(header), (ValueError,))
    survives(lambda text: parse_array(file(text), "a.safetensors", "a"), of(header), (ClipError,))
    survives(lambda text: parse_array(text, "a.json", None), of([[1, 2], [3, 4]]), (ClipError,))


def test_lines_of_a_log() -> None:
    line = {"time": "2026-01-01T00:00:00+00:00", "event": "shard_done", "rows": 3}
    survives(read_line, of(line))


@pytest.mark.parametrize(
    ("trainer", "document"),
    [
        ("musubi", tomllib.loads(MUSUBI)),
        ("diffusion-pipe", tomllib.loads(DIFFUSION_PIPE)),
        ("finetrainers", FINETRAINERS),
        ("simpletuner", SIMPLETUNER),
    ],
)
@pytest.mark.slow
def test_data_sets_of_trainers(tmp_path: Path, trainer: str, document: Any) -> None:
    path = tmp_path / "set.json"

    def read(text: bytes) -> None:
        path.write_bytes(text)
        for number, one in enumerate(convert(trainer, str(path))):
            raw = {"corpus": one.corpus, "clips": one.clips, "encoder": {"kind": "dct"}}
            validate(Config, {**raw, "cache": {"url": "x"}}, str(number))

    survives(read, of(document, EVERY))


@pytest.mark.slow
def test_config_json_of_a_model(tmp_path: Path) -> None:
    model = save("wan", tmp_path / "model")
    path = model / "config.json"
    document = json.loads(path.read_bytes())
    section = {"kind": "diffusers_video", "model": str(model), "dtype": "float32", "store": "mean"}
    module, config = resolve(section)

    def read(text: bytes) -> None:
        path.write_bytes(text)
        module.describe(config, dtype="float32")

    survives(read, of(document, EVERY))


@pytest.mark.slow
def test_a_power_of_a_huge_number_is_not_worked_out(tmp_path: Path) -> None:
    model = save("wan", tmp_path / "model")
    document = json.loads((model / "config.json").read_bytes())
    document["temperal_downsample"][0] = 10**10
    (model / "config.json").write_text(json.dumps(document))
    section = {"kind": "diffusers_video", "model": str(model), "dtype": "float32", "store": "mean"}
    module, config = resolve(section)
    with pytest.raises(ConfigError, match="a number beyond 1048576"):
        module.describe(config, dtype="float32")


def test_an_index_of_weights(tmp_path: Path) -> None:
    name = "diffusion_pytorch_model.safetensors"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"")

    def read(text: bytes) -> None:
        (tmp_path / f"{name}.index.json").write_bytes(text)
        locate(str(tmp_path), None, None)

    survives(read, of({"weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}))


def test_facts_of_a_training_checkpoint(tmp_path: Path) -> None:
    facts = {each.name: 1 for each in dataclasses.fields(checkpoints.Facts)}

    def read(text: bytes) -> None:
        (tmp_path / checkpoints.FACTS).write_bytes(text)
        checkpoints.load(tmp_path)

    survives(read, of(facts))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["webdataset", "mds", "memmap"])
def test_layouts_of_other_trainers(tmp_path: Path, layout: str) -> None:
    ids = layout == "memmap"
    cache = make_cache(
        tmp_path,
        spec_of(stored="ids" if ids else "moments"),
        sizes=((32, 32),) if ids else ((32, 48),),
    )
    out = tmp_path / "out"
    write_export(cache, out, layout)
    paths = [path for path in out.rglob("*.json") if path.name != export.MARK]
    for path in paths:
        sound = path.read_bytes()

        def read(text: bytes, path: Path = path) -> None:
            path.write_bytes(text)
            get_layout(layout).find(Storage(str(out)), cache.manifest.spec)

        survives(read, of(json.loads(sound), EVERY))
        path.write_bytes(sound)
    assert paths

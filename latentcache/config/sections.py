"""The configuration: one pydantic model per section. `config.files` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from latentcache.config.base import Options, Positive, PositiveFloat, Section, Url
from latentcache.config.clips import ClipsConfig
from latentcache.core.records import MAX_WEIGHT
from latentcache.errors import did_you_mean
from latentcache.storage.urls import public_name

#: Roles that a column of a corpus table can have.
COLUMN_ROLES = ("video", "image", "caption", "key", "frames", "fps", "height", "width")


Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]


class CorpusConfig(Section):
    """Where the sources are."""

    source: Url = Field(
        description="A directory, a glob, a .csv, .jsonl, .json or .parquet table, or a .tar file; any "
        "fsspec URL. Tables in several files and tar files of samples: see [corpora.md](corpora.md). "
        "package://NAME/FOLDER reads a folder of an installed package; cache://URL takes the clips that "
        "another cache's latents decode to."
    )
    columns: dict[str, str] | None = Field(
        default=None,
        description="For tables: which column holds what, role -> column. Roles: "
        + ", ".join(COLUMN_ROLES)
        + ". Paths are relative to the table. frames, fps, height and width are trusted, not "
        "probed. Omitted: `video` is the path and `caption`, if there is one, the caption.",
    )
    keep: list[str] = Field(
        default_factory=list,
        description="Columns of the table that are carried into the sample table and the batches. URLs in "
        "them lose passwords, signatures and tokens.",
    )
    per_frame: list[str] = Field(
        default_factory=list,
        description="Columns of the table with a list per source: a number, or a vector of numbers, per "
        "frame of the source. Each clip keeps the values of its own sampled frames, as tensors in batches.",
    )
    weight: str | Weight | dict[str, Weight] | None = Field(
        default=None,
        description="How often a loader takes each clip per epoch, on average; clips are stored once. A "
        "number for all sources; a column of the table (null: 1); or numbers by patterns of names, of "
        "which the longest that matches counts: {good/*: 2.5, '*': 1}. See "
        "[corpora.md](corpora.md#weights).",
    )
    no_suffix: Literal["ignore", "by_content"] = Field(
        default="ignore",
        description="What happens to files without a suffix in a directory or glob: they are counted, or "
        "their first bytes say whether they are videos or images.",
    )
    max_pixels: Positive = Field(
        default=1 << 26,
        description="A source whose frames have more pixels than this is recorded as failed before "
        "any frame is decoded. The default is 8192x8192.",
    )
    storage_options: Options = Field(
        default_factory=dict, description="fsspec options of the corpus; never stored."
    )
    decoder: Options = Field(
        default_factory=dict,
        description="For cache://: changes to the encoder that the cache names, such as the model's place "
        "here; its `kind`, where that is a module of somebody's own, allows it. Never stored.",
    )
    schemes: list[str] = Field(
        default_factory=list,
        description="File systems that sources may be on beside local disks, http(s), S3, GCS, Azure, hf "
        "and sftp; for chains (zip://a.mp4::s3://bucket/b.zip) those that wrap others. Never stored.",
    )

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        for role in columns or ():
            if role not in COLUMN_ROLES:
                raise ValueError(
                    f"unknown role {role!r}.{did_you_mean(role, COLUMN_ROLES)} "
                    f"Roles: {', '.join(COLUMN_ROLES)}"
                )
        if columns is not None and not {"video", "image"} & columns.keys():
            raise ValueError("needs a role `video` or `image`: the column of the paths")
        return columns


class CompressionConfig(Section):
    """How shard objects are compressed; this does not change the latents' values."""

    codec: Literal["zstd", "lz4", "none"] = Field(
        default="zstd",
        description="zstd (after a byte shuffle); lz4 (after a bit shuffle; in Parquet after a byte stream "
        "split), which is larger and faster; or none.",
    )
    level: Annotated[int, Field(ge=1, le=9)] = Field(default=5, description="1 fast .. 9 small.")


#: What `shard_clips: auto` aims at: a worker that is late with its last shard then costs a quarter of the
#: time at most; and at most so many clips are lost where a run is stopped, per worker and stage.
SHARDS_PER_WORKER = 4
MAX_AUTO_SHARD_CLIPS = 64
#: GPUs that a run is prepared for if nothing says how many it has.
EXPECTED_WORKERS = 8


class CacheConfig(Section):
    """Where the cache goes and how it is stored."""

    url: Url = Field(description="Folder of the cache; any fsspec URL.")
    format: Literal["zarr", "parquet"] = Field(default="zarr", description="Shard format.")
    dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        default=None,
        description="The dtype of the stored latents; omitted: bfloat16. Not for discrete tokenizers, "
        "whose ids are stored in the smallest unsigned type that holds the codebook.",
    )
    shard_clips: Annotated[int, Field(gt=0, le=4096)] | Literal["auto"] = Field(
        default=64,
        description="Clips per shard: the unit of retry, and one storage object. auto: chosen when the "
        "cache is made: each worker gets several (8 workers if run.workers is auto), of at most 64 clips.",
    )
    chunk_frames: Positive | None = Field(
        default=None,
        description="Latent frames that are compressed together: a view of a part of a long clip then "
        "reads only the chunks that hold it. Omitted: all of a clip's. Only for Zarr.",
    )
    compression: CompressionConfig = Field(default_factory=CompressionConfig)
    storage_options: Options = Field(
        default_factory=dict, description="fsspec options of the cache; never stored."
    )

    @model_validator(mode="after")
    def _can_chunk(self) -> Self:
        if self.chunk_frames is not None and self.format == "parquet":
            raise ValueError(
                "`chunk_frames` is for `format: zarr`: a row group of Parquet is a whole clip. Remove "
                "`chunk_frames`, or use `format: zarr`"
            )
        return self

    def shard_clips_of(self, num_clips: int, workers: int | Literal["auto"]) -> int:
        """Return the clips per shard of a cache that is made with so many clips, for so many workers."""
        if self.shard_clips != "auto":
            return self.shard_clips
        shards = SHARDS_PER_WORKER * (EXPECTED_WORKERS if workers == "auto" else workers)
        return max(1, min(MAX_AUTO_SHARD_CLIPS, num_clips // shards))


class RunConfig(Section):
    """How the work is run; this does not change the latents' values."""

    runner: Literal["ray", "local"] = Field(
        default="ray", description="ray: one actor per GPU; local: everything in this process."
    )
    ray_address: str | None = Field(
        default=None, description="Address of a running Ray cluster; omitted: start one locally."
    )
    workers: Positive | Literal["auto"] = Field(
        default="auto",
        description="Number of actors; auto: one per GPU, or one per machine if there is no GPU, also on "
        "machines that join the cluster later.",
    )
    workers_per_gpu: Positive | Literal["auto"] = Field(
        default=1,
        description="Actors that share a GPU, for encoders that leave it idle: each loads the model; auto: "
        "as many as have memory and 4 CPUs each, 4 at most, which one GPU is tried for at the start.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where the encoder runs; auto: cuda if there is a GPU, else cpu. cuda without a GPU is "
        "refused.",
    )
    max_retries: Annotated[int, Field(ge=0)] = Field(
        default=3,
        description="A shard is tried this many times more before it is recorded as failed.",
    )
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="The run stops if more than this fraction of its latest clips failed, or if no shard "
        "can be encoded at all; 1: it never stops.",
    )
    judged_clips: Positive = Field(
        default=100,
        description="Clips that must be done before max_failed_fraction is applied. It looks at the latest "
        "clips, ten times as many as this.",
    )
    decode_timeout_s: PositiveFloat = Field(
        default=60.0,
        description="A clip that takes longer to decode is recorded as failed. Fetching its source does "
        "not count.",
    )
    decode_processes: Positive | Literal["auto"] = Field(
        default="auto", description="Decoding processes per worker; auto: its share of the CPUs."
    )
    decode_memory_bytes: Annotated[int, Field(ge=1 << 29)] = Field(
        default=4 << 30,
        description="Memory that one decoding process may take (on Linux); a clip that needs "
        "more is recorded as failed.",
    )
    decode_ahead_bytes: Positive = Field(
        default=1 << 30,
        description="At most this many bytes of decoded pixels are held per worker (at least two clips).",
    )
    source_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        default=8 << 30,
        description="Remote sources may take so many bytes below TMPDIR on each machine (and half of the "
        "room that is free there), for all its decoding processes; 0: each process fetches what it needs.",
    )
    lease_s: PositiveFloat = Field(
        default=120.0,
        description="On storage that cannot create on condition, such as SFTP: a run that shows no sign of "
        "life for so long is taken for dead, and another may go on.",
    )
    stall_s: PositiveFloat | Literal["auto"] = Field(
        default="auto",
        description="A worker that makes no progress for so many seconds is replaced, and its shards are "
        "tried again; auto: 600, and more if clips are large or take long.",
    )
    snapshot_interval_s: PositiveFloat = Field(
        default=60.0, description="The snapshot is published this often during a run."
    )

    tensorboard: str | None = Field(
        default=None,
        description="A folder for TensorBoard: clips, speed, failures and the seconds of each stage, every "
        "few seconds. Needs the package tensorboard.",
    )
    wandb: str | None = Field(
        default=None,
        description="A project of Weights & Biases for the same figures. Needs the package wandb.",
    )

    def num_decode_processes(self, num_cpus: int) -> int:
        """Return the decoding processes of a worker that may use `num_cpus` CPUs."""
        return num_cpus if self.decode_processes == "auto" else self.decode_processes


class QualityConfig(Section):
    """Clips that a run decodes and compares with their sources; the latents do not change."""

    every: Annotated[int, Field(ge=0)] = Field(
        default=256,
        description="One clip in this many of each bucket, from the first one on, is decoded and compared, "
        "for the column psnr of the sample table; 0: none, not even the first ones.",
    )
    judged_clips: Positive = Field(
        default=3,
        description="Each worker compares its first clips, this many, before min_psnr is applied.",
    )
    min_psnr: PositiveFloat | None = Field(
        default=None,
        description="In dB: the run stops if the median over a worker's latest compared clips is lower, or "
        "if red and blue are swapped. null: it never stops, and warns below 20 dB. 20 suits most trained "
        "models.",
    )


#: Settings by which a configuration trusts somebody, or names secrets: a cache neither stores them nor
#: brings them along, for it may be a stranger's.
NOT_OF_A_CACHE = (
    ("corpus", "storage_options"),
    ("corpus", "schemes"),
    ("corpus", "decoder"),
    ("cache", "storage_options"),
    ("encoder", "trust_torchscript"),
    ("run", "ray_address"),
    ("run", "tensorboard"),
    ("run", "wandb"),
)


def of_a_cache(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cache's configuration without what a cache must not bring along."""
    return {
        name: {key: value for key, value in section.items() if (name, key) not in NOT_OF_A_CACHE}
        if isinstance(section, Mapping)
        else section
        for name, section in data.items()
    }


class Config(Section):
    """One configuration file."""

    corpus: CorpusConfig
    clips: ClipsConfig
    encoder: dict[str, Any] = Field(
        description="`kind` names the encoder; the rest is the encoder's own configuration."
    )
    cache: CacheConfig
    run: RunConfig = Field(default_factory=RunConfig)
    quality: QualityConfig = Field(default_factory=QualityConfig)
    fields: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Further arrays of each clip, by name, such as the states of a text encoder: see "
        "[fields.md](fields.md).",
    )

    @field_validator("encoder")
    @classmethod
    def _has_kind(cls, encoder: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(encoder.get("kind"), str):
            raise ValueError("needs a `kind`, such as `kind: dct`")  # noqa: TRY004 - for pydantic
        return encoder

    def without_secrets(self) -> dict[str, Any]:
        """Return what a cache stores: see NOT_OF_A_CACHE; and no URL, for a cache can be moved.

        Fields have their own settings beside them. Of a signed URL of the corpus its name is stored.
        """
        data = of_a_cache(self.model_dump(mode="json"))
        data["corpus"]["source"] = public_name(self.corpus.source)
        del data["cache"]["url"], data["fields"]
        return data

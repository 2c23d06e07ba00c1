"""WebDataset: tar files of samples, each a latent as raw bytes, a caption and facts in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from latentcache.core.json_text import OTHER_HEADER, parse_json
from latentcache.core.spec import LatentSpec
from latentcache.exchange.clips import ClipRow
from latentcache.exchange.damage import refuse
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import array_of, names_in, torch_bytes
from latentcache.exchange.generic import (
    Clips,
    choice_key,
    facts_of,
    found_in,
    record_of,
    tokens_key,
)
from latentcache.exchange.quoting import quoted, without_braces
from latentcache.exchange.records import Found
from latentcache.exchange.tar import Member, read_members, tar_bytes, tensor_in
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage

LATENTS, FACTS, CAPTION = ".latents.pth", ".json", ".txt"


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as WebDataset's shards. Raises ConfigError for fields that are not there."""
    clips = Clips(cache, options)
    files = [
        File(f"shard-{number:06d}.tar", partial(_file, clips, group))
        for number, group in enumerate(clips.groups)
    ]
    pattern = (
        f"shard-{{000000..{len(files) - 1:06d}}}.tar" if len(files) > 1 else "shard-000000.tar"
    )
    return Export(
        files=files,
        last=clips.about(),
        stanza=partial(_stanza, pattern),
        file_bytes=clips.file_bytes,
        notes=clips.notes,
    )


def _file(clips: Clips, group: Sequence[tuple[int, ClipRow]]) -> bytes:
    return tar_bytes(_members(clips, group))


def _members(clips: Clips, group: Sequence[tuple[int, ClipRow]]) -> Iterator[tuple[str, bytes]]:
    for number, row, stored in clips.of(group):
        name = f"{number:09d}"
        yield name + LATENTS, torch_bytes(stored)
        facts = facts_of(row, stored)
        for key, sample in clips.samples(row, stored).items():
            yield f"{name}.{key}.pth", torch_bytes(sample.array)
            if sample.tokens is not None:
                facts[tokens_key(key)] = sample.tokens
            if sample.choice is not None:
                facts[choice_key(key)] = sample.choice
        yield name + FACTS, json.dumps(facts).encode()
        yield name + CAPTION, (row.caption or "").encode()


def _stanza(pattern: str, url: str) -> str:
    urls = quoted(f"{without_braces(url)}/{pattern}")
    return (
        "# webdataset\n"
        f"dataset = webdataset.WebDataset({urls}, shardshuffle=100).decode()\n"
        '# sample["latents.pth"] as stored, sample["txt"], sample["json"]; fields: sample["NAME.pth"]'
    )


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the samples of shards that `export` wrote. Raises ConfigError, CorpusError."""
    records = []
    for path in names_in(storage, "", ".tar"):
        members = {member.name: member for member in read_members(storage, path)}
        for name, member in members.items():
            if _is_sample(name):
                facts = _facts(storage, members, name.removesuffix(LATENTS), path)
                records.append(record_of(storage, path, facts, partial(_bytes, storage), member))
    return found_in(storage, spec, "webdataset", records)


def _is_sample(name: str) -> bool:
    """Tell whether a member is a sample's latents. A field's array may be called so: NAME.latents.pth."""
    _, dot, kind = name.rpartition("/")[2].partition(".")
    return dot + kind == LATENTS


def _facts(storage: Storage, members: dict[str, Member], name: str, path: str) -> Any:
    try:
        return parse_json(members[name + FACTS].read(storage))
    except OTHER_HEADER:
        raise refuse(storage, path, f"has no facts in JSON of its sample {name}") from None


def _bytes(storage: Storage, member: Member) -> bytes:
    return bytes(array_of(tensor_in(storage, member)).tobytes())

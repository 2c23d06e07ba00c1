"""The three jobs through the wire: corpus and cache on S3, and everything read back from there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import latentcache
from latentcache.storage import Storage
from tests.caches import make_config, make_corpus, run_job
from tests.s3 import S3, SECRET, s3_fixture, s3_server_fixture  # noqa: F401 fixtures


@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
def test_precompute_resume_and_stream_on_s3(tmp_path: Path, s3: S3, shard_format: str) -> None:
    corpus = make_corpus(tmp_path / "corpus", 3)
    for path in corpus.iterdir():
        s3.put(f"corpus/{path.name}", path.read_bytes())
    url = f"{s3.url}/caches/one"
    config = make_config(tmp_path, corpus, url, cache={"format": shard_format})
    data = yaml.safe_load(config.read_text())
    data["corpus"] = {"source": f"{s3.url}/corpus", "storage_options": s3.options}
    data["cache"]["storage_options"] = s3.options
    config.write_text(yaml.safe_dump(data))
    options = [f"--storage-option=key={s3.options['key']}", f"--storage-option=secret={SECRET}"]
    options.append(f"--storage-option=client_kwargs={s3.options['client_kwargs']}")

    out, err = run_job("precompute", config, status=3)
    assert "cache    7 clips ok, 0 failed, 2 sources rejected" in out
    clean = {name: s3.filesystem.cat_file(name) for name in s3.filesystem.find(url)}
    s3.filesystem.rm_file(f"{url}/samples/5x64x96/000001.parquet")
    printed = out + err
    corpus_options = f"corpus.storage_options={s3.options}"
    out, err = run_job("resume", url, corpus_options, *options, status=3)
    assert "1 to encode" in out
    again = {name: s3.filesystem.cat_file(name) for name in s3.filesystem.find(url)}
    assert again.keys() == clean.keys()
    assert all(again[name] == clean[name] for name in clean if "/latents/" in name)
    printed += out + err
    out, err = run_job("stream", url, *options)
    assert "7 samples" in out
    printed += out + err
    assert SECRET not in printed
    assert not [name for name, data in again.items() if SECRET.encode() in data]

    local = tmp_path / "local"
    run_job("precompute", make_config(tmp_path, corpus, str(local)), status=3)
    remote = latentcache.open_cache(url, s3.options)
    for sample in latentcache.open_cache(str(local)):
        assert torch.equal(remote.sample(sample["key"])["latents"], sample["latents"])


def test_a_bucket_that_is_not_there_is_one_message(tmp_path: Path, s3: S3) -> None:
    corpus = make_corpus(tmp_path / "corpus", 1)
    options = {"storage_options": s3.options}
    config = make_config(tmp_path, corpus, "s3://no-such-bucket-here/cache", cache=options)
    _, err = run_job("precompute", config, status=2)
    assert "no-such-bucket-here" in err
    assert SECRET not in err
    assert len(err.strip().splitlines()) == 1
    assert not Storage(s3.url, s3.options).list("cache")

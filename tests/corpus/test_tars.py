"""Tar files of samples as a corpus: which sources they give, and what is refused in so many words."""

from __future__ import annotations

import gzip
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentcache.corpus.stamps import stamp_sources
from latentcache.decoders.identity import identify_url
from latentcache.decoders.source import Source
from latentcache.errors import ClipError, ConfigError, CorpusError
from latentcache.storage.part_files import open_whole_or_part
from latentcache.storage.parts import ByteRange, part_of
from latentcache.storage.urls import refused_scheme
from tests.tools.corpora import column, make, read
from tests.tools.http_files import serve
from tests.tools.s3 import S3, s3_fixture, s3_server_fixture  # noqa: F401 - fixtures
from tests.tools.tars import write_tar
from tests.tools.videos import moving_pattern, write_video


def content_of(url: str, options: dict[str, Any] | None = None) -> bytes:
    with open_whole_or_part(url, options) as file:
        return file.read()


def described(**facts: Any) -> bytes:
    return json.dumps(facts).encode()


def test_members_are_grouped_by_stem_and_sources_are_ranges(tmp_path: Path) -> None:
    first = [
        ("./00/a.txt", b"\n a dog \n"),
        ("./00/a.mp4", b"A" * 700),
        ("b.JPG", b"B" * 10),
        ("b.json", described(caption="from json", score=0.5)),
        ("c.rgb.png", b"C"),
        ("c.cls", b"7"),
        ("._b.jpg", b"mac"),
        ("README", b"-"),
    ]
    write_tar(tmp_path / "1.tar", [("x.webm", b"X"), ("x.caption", b"first"), ("y.cls", b"1")])
    write_tar(tmp_path / "0.tar", first)
    make(tmp_path, "0.parquet", "0_stats.json")
    corpus = read(tmp_path)
    assert column(corpus, "name") == ["0.tar/00/a", "0.tar/b", "0.tar/c", "1.tar/x"]
    assert column(corpus, "kind") == ["video", "image", "image", "video"]
    assert column(corpus, "caption") == ["a dog", "from json", None, "first"]
    assert [content_of(u) for u in column(corpus, "url")] == [b"A" * 700, b"B" * 10, b"C", b"X"]
    assert [part_of(u).suffix for u in column(corpus, "url")] == ["mp4", "jpg", "png", "webm"]  # type: ignore[union-attr]
    assert corpus.ignored == {
        ".cls": 2, ".json": 1, ".parquet": 1, "hidden": 1, "no suffix": 1,
    }  # fmt: skip
    assert read(f"{tmp_path}/*.tar").table.equals(corpus.table)
    assert column(read(tmp_path / "1.tar"), "name") == ["1.tar/x"]


def test_fields_of_the_json_become_facts_and_kept_columns(tmp_path: Path) -> None:
    facts = {"fps": 24, "n": 9, "height": 64, "width": 96, "score": 3, "text": "said"}
    write_tar(
        tmp_path / "0.tar", [("a.mp4", b"A"), ("a.json", described(**facts)), ("a.jpg", b"-")]
    )
    write_tar(tmp_path / "1.tar", [("a.mp4", b"A"), ("a.json", described(n=None, score=1.5))])
    columns = {"video": "mp4", "caption": "text", "fps": "fps", "frames": "n"}
    corpus = read(tmp_path, columns=columns, keep=["score"])
    assert column(corpus, "fps") == [24.0, None]
    assert column(corpus, "frames") == [9, None]
    assert column(corpus, "caption") == ["said", None]
    assert column(corpus, "score") == [3.0, 1.5]
    assert corpus.ignored == {".jpg": 1}
    with pytest.raises(
        CorpusError, match=r"0\.tar: sample 1 .*n = '?said'? is not a number|not a number"
    ):
        read(tmp_path, columns={**columns, "frames": "text"})
    with pytest.raises(CorpusError, match=r"no \.json of the tar files has 'sco'"):
        read(tmp_path, columns=columns, keep=["sco"])
    write_tar(tmp_path / "1.tar", [("a.mp4", b"A"), ("a.json", described(score="high"))])
    with pytest.raises(CorpusError, match=r"1\.tar: a field of corpus\.keep has another type"):
        read(tmp_path, columns=columns, keep=["score"])


def test_a_kept_field_that_is_null_in_every_sample_is_taken(tmp_path: Path) -> None:
    for name, facts in (("0", {"score": None}), ("1", {})):
        members = [("a.mp4", b"A"), ("a.json", described(**facts))]
        write_tar(tmp_path / f"{name}.tar", members)
    assert column(read(tmp_path, keep=["score"]), "score") == [None, None]
    with pytest.raises(CorpusError, match=r"no \.json of the tar files has 'sco'"):
        read(tmp_path, keep=["score", "sco"])


def test_what_says_not_which_file_counts_is_refused(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    write_tar(tar, [("a.mp4", b"A"), ("a.jpg", b"J")])
    with pytest.raises(
        CorpusError, match=r"sample a has 2 videos and images \(mp4, jpg\).*video: mp4"
    ):
        read(tar)
    assert column(read(tar, columns={"image": "jpg"}), "kind") == ["image"]
    for again in ("a.mp4", "./a.mp4", "a.MP4"):
        write_tar(tar, [("a.mp4", b"A"), (again, b"B")])
        with pytest.raises(CorpusError, match="is in it twice"):
            read(tar)
    write_tar(tar, [("a.mp4", b"A")])
    for bad in ({"columns": {"video": "mp4", "key": "k"}}, {"per_frame": ["actions"]}):
        with pytest.raises(ConfigError, match="tar files cannot have"):
            read(tar, **bad)
    with pytest.raises(CorpusError, match=r"hold no video .* of the suffixes.*\.mp4 \(1\)"):
        read(tar, columns={"video": "webm"})


def test_members_that_are_no_text_are_refused(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    for name, data, why in (
        ("a.txt", b"\xff", "is not UTF-8"),
        ("a.txt", b"x" * ((1 << 20) + 1), "is larger than 1.0 MiB"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b"[" * 100_000, "is not JSON"),
    ):
        write_tar(tar, [("a.mp4", b"A"), (name, data)])
        with pytest.raises(CorpusError, match=rf"0\.tar: {name} {why}"):
            read(tar)
    write_tar(tar, [("a.mp4", b"A"), ("a.json", b"[1, 2]")])
    assert column(read(tar), "caption") == [None]


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.tar.zst"])
def test_a_compressed_tar_is_refused_with_the_fix(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, "1.tar")
    for source in (tmp_path, f"{tmp_path}/*.t*", tmp_path / name):
        with pytest.raises(CorpusError, match=r"expand it once|is no whole tar file"):
            read(source)


def test_a_tar_that_is_compressed_by_its_content_only_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", [("a.mp4", b"A")])
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(CorpusError, match=r"0\.tar is compressed.*gunzip"):
        read(tar)


def test_a_tar_that_is_cut_off_anywhere_says_so(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    members = [("a.mp4", b"A" * 600), ("a.txt", b"t"), ("b.mp4", b"B" * 600)]
    whole = write_tar(tar, members).read_bytes()
    end = len(whole.rstrip(b"\0"))
    for size in [*range(0, end + 512, 100), 512, 1024, 1536, 2048]:
        tar.write_bytes(whole[:size])
        with pytest.raises(CorpusError, match=r"0\.tar is no whole tar file"):
            read(tar)
    tar.write_bytes(whole + whole)
    with pytest.raises(CorpusError, match="goes on after its end"):
        read(tar)


def test_hostile_members_are_only_names(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    link = tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    names = [
        "../../up.mp4",
        "/etc/passwd.mp4",
        "a\x1b[2Jb.mp4",
        "n" * 300 + ".mp4",
        "a::b?x=1#.mp4",
    ]
    tar = write_tar(folder / "0.tar", [*((n, n.encode()) for n in names), ("link.mp4", link)])
    corpus = read(tar)
    assert column(corpus, "name") == [f"0.tar/{n.removesuffix('.mp4')}" for n in names]
    assert [content_of(u).decode() for u in column(corpus, "url")] == names
    assert corpus.ignored == {"links in tars": 1}
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["0.tar", "in"]
    tar.write_bytes(
        write_tar(tar, [("é.mp4", b"")]).read_bytes().replace("é".encode(), b"\xff\xfe")
    )
    with pytest.raises(CorpusError, match=r"no whole tar file|is not UTF-8"):
        read(tar)


def _header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(
        struct.pack("100s8s8s8s12s12s8sc355x", name, *[b"0000644"] * 3, size, b"0", b" " * 8, kind)
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "data",
    [
        _header(b"a.mp4", b"\xff" * 12),
        _header(b"a.mp4", b"\x80" + b"\x7f" * 11),
        _header(b"x", b"77777777777", b"x"),
        _header(b"L", b"1", b"L") * 5000,
        _header(b"x", b"20", b"x")
        + b"16 size=-1024\n\n\n".ljust(512, b"\0")
        + _header(b"a.mp4", b"0"),
    ],
    ids=["negative", "huge", "pax without an end", "names of names", "pax backwards"],
)
def test_hostile_headers_end_in_a_sentence(tmp_path: Path, data: bytes) -> None:
    tar = tmp_path / "0.tar"
    tar.write_bytes(data + bytes(1024))
    with pytest.raises(CorpusError, match=r"0\.tar"):
        read(tar)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
@pytest.mark.parametrize("sizes", [[300 << 20], [700 << 10, 700 << 10], [-512]])
def test_headers_are_not_read_beyond_a_limit(tmp_path: Path, kind: bytes, sizes: list[int]) -> None:
    """The file is sparse, so it takes no room. A size below 0 would mean all the rest."""
    tar = tmp_path / "0.tar"
    with tar.open("wb") as file:
        for size in sizes:
            as_text = b"%011o" % size if size > 0 else (size).to_bytes(12, "big", signed=True)
            file.write(_header(b"x", as_text, kind))
            file.seek(max(0, size), 1)
        file.write(_header(b"a.mp4", b"0") + bytes(1024))
    with pytest.raises(CorpusError, match=r"0\.tar is no whole tar file: .* more than 1\.0 MiB"):
        read(tar)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read(tmp_path: Path, form: int) -> None:
    stem = "a/" * 50_000 + "b"
    with tarfile.open(tmp_path / "0.tar", "w", format=form) as tar:
        for number in range(15):  # together more than the limit of one
            tar.addfile(tarfile.TarInfo(f"{stem}{number}.mp4"))
    assert column(read(tmp_path / "0.tar"), "name")[14] == f"0.tar/{stem}14"


def test_a_changed_member_is_a_changed_source_and_a_moved_one_is_not(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", [("a.mp4", b"A" * 600), ("b.mp4", b"B" * 600)])
    before = column(read(tar), "url")
    identities, stamps = [identify_url(u) for u in before], stamp_sources(before, {})
    assert stamps[0] == stamps[1] is not None
    write_tar(tar, [("z.mp4", b"Z"), ("a.mp4", b"A" * 600), ("b.mp4", b"C" * 600)])
    after = column(read(tar), "url")[1:]
    assert stamp_sources(after, {}) != stamps
    assert identify_url(after[0]) == identities[0]
    assert identify_url(after[1]) != identities[1]
    tar.write_bytes(tar.read_bytes()[:100])
    with pytest.raises(ClipError, match=r"ends? at byte") as raised:
        identify_url(after[1])
    assert raised.value.reason == "source_changed"
    tar.rename(tmp_path / "1.tar")
    with pytest.raises(ClipError) as raised:
        identify_url(after[1])
    assert raised.value.reason == "missing"


def test_a_part_may_only_be_of_a_file_that_may_be_opened() -> None:
    for file, ok in (
        ("s3://b/a.tar", True),
        ("/a::b.tar", True),
        ("memory://a", False),
        ("zip://a::/b.zip", False),
    ):
        url = ByteRange(file=file, offset=0, size=1).url
        assert (refused_scheme(url) is None) == ok
    assert refused_scheme("part://0-1::part://0-1::/etc/passwd")
    assert refused_scheme("part://../etc::/x")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_remote_tars_are_read_by_ranges(tmp_path: Path, s3: S3) -> None:
    videos = [(f"{n}.mp4", bytes([n]) * (3 << 20)) for n in range(3)]
    tar = write_tar(tmp_path / "0.tar", [*videos, ("1.txt", b"one")])
    s3.put("shards/0.tar", tar.read_bytes())
    with serve(tmp_path) as server:
        for source, options in (
            (f"{server.url}/0.tar?sig=x", {}),
            (f"{s3.url}/shards/*.tar", s3.options),
        ):
            before = server.num_bytes
            corpus = read(source, storage_options=options)
            assert server.num_bytes - before < 1 << 20
            assert column(corpus, "name") == ["0.tar/0", "0.tar/1", "0.tar/2"]
            assert column(corpus, "caption") == [None, "one", None]
            url = column(corpus, "url")[1]
            assert content_of(url, options) == videos[1][1]
            assert identify_url(url, options)
        assert server.num_bytes < 5 << 20  # of a file of 9 MiB


def test_a_member_is_decoded_as_its_file_is(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", moving_pattern(6, 64, 96))
    tar = write_tar(tmp_path / "0.tar", [("x.txt", b"t"), ("x.mp4", video.read_bytes())])
    url = column(read(tar), "url")[0]
    member, whole = Source(url, "video"), Source(str(video), "video")
    assert member.identity == whole.identity == identify_url(url)
    assert Path(member.path).suffix == ".mp4"
    every = np.arange(6)
    for got, expected in zip(
        member.reader().frames(every), whole.reader().frames(every), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    member.close()
    whole.close()
    assert not Path(member.path).exists()

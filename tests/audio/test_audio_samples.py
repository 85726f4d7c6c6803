from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.audio.material import Member, encoded, label, pairs, tar_bytes
from xares_store.audio.samples import FileRange, Sample, iter_samples
from xares_store.clip import Failure
from xares_store.errors import ShardError


def write(folder: Path, members: list[Member | tarfile.TarInfo], name: str = "a.tar", **options: int) -> Path:
    path = folder / name
    data = tar_bytes(members, **options)
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    return path


def audio_of(sample: Sample | Failure) -> bytes:
    assert isinstance(sample, Sample)
    return sample.audio.read() if isinstance(sample.audio, FileRange) else sample.audio


def test_a_plain_shard_gives_byte_ranges_and_the_json_verbatim(tmp_path: Path) -> None:
    members = [("x/1.wav", encoded()), ("x/1.json", b' {"label": "\xc3\xbc",\n "n": 1.50}\n')]
    (sample,) = iter_samples(write(tmp_path, members))
    assert isinstance(sample, Sample)
    assert (sample.key, sample.ext) == ("x/1", "wav")
    assert sample.label == ' {"label": "ü",\n "n": 1.50}\n'
    assert isinstance(sample.audio, FileRange)
    assert sample.audio.read() == members[0][1]
    assert sample.nbytes == len(members[0][1])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_compressed_and_plain_shards_hold_the_same(tmp_path: Path, format: int) -> None:
    members = [*pairs(["a", "b", "long" * 20 + "/ü" if format != tarfile.USTAR_FORMAT else "c"]), ("d.wav", b"no json")]
    plain = list(iter_samples(write(tmp_path, members, format=format), shard="s"))
    packed = list(iter_samples(write(tmp_path, members, "a.tar.gz", format=format), shard="s"))
    assert [s.key for s in plain] == [s.key for s in packed] == [members[0][0][:-4], "b", members[4][0][:-4], "d"]
    assert [audio_of(s) for s in plain[:3]] == [audio_of(s) for s in packed[:3]]
    assert isinstance(plain[3], Failure)
    assert plain[3] == packed[3]


def test_compression_is_recognised_by_content(tmp_path: Path) -> None:
    path = write(tmp_path, pairs(["a"]), "a.tar.gz").rename(tmp_path / "a.tar")
    assert [s.key for s in iter_samples(path)] == ["a"]


def test_samples_agree_with_webdataset(tmp_path: Path) -> None:
    path = tmp_path / "w.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(5):
            writer.write({"__key__": f"part/{number}", "wav": encoded(seed=number), "json": label(number)})
    with path.open("rb") as stream:
        files = webdataset.tariterators.tar_file_expander([{"url": "w.tar", "stream": stream}])
        samples = list(webdataset.tariterators.group_by_keys(files))
    theirs = [(sample["__key__"], sample["wav"], sample["json"].decode()) for sample in samples]
    ours = [(s.key, audio_of(s), s.label) for s in iter_samples(path) if isinstance(s, Sample)]
    assert ours == theirs
    assert len(ours) == 5


def test_dots_in_a_key_stay_in_the_key(tmp_path: Path) -> None:
    assert [s.key for s in iter_samples(write(tmp_path, pairs(["v1.2/a.b", "v1.2/a.c"])))] == ["v1.2/a.b", "v1.2/a.c"]


def test_a_key_outside_utf8_becomes_text(tmp_path: Path) -> None:
    data = tar_bytes(pairs(["abc"])).replace(b"abc.", b"a\xffc.")
    # the checksums of the two changed headers
    fixed = bytearray(data)
    for start in [at for at in range(0, len(data), 512) if data[at : at + 2] == b"a\xff"]:
        fixed[start + 148 : start + 156] = b"        "
        fixed[start + 148 : start + 156] = b"%06o\0 " % sum(fixed[start : start + 512])
    (tmp_path / "a.tar").write_bytes(fixed)
    (sample,) = iter_samples(tmp_path / "a.tar")
    assert sample.key == "a\\xffc"
    sample.key.encode("utf-8")


def test_audio_and_json_need_not_be_neighbours(tmp_path: Path) -> None:
    a, aj, b, bj = pairs(["a", "b"])
    for name in ("a.tar", "a.tar.gz"):
        assert [s.key for s in iter_samples(write(tmp_path, [aj, b, bj, a], name))] == ["b", "a"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        ([("k.wav", b"x")], "no-json", '"k.json"'),
        ([("k.json", b"{}")], "no-audio", '"k"'),
        ([("k.json", b"{}"), ("k.m4a", b"x")], "no-audio", '"k.m4a" is in a format'),
        ([("k.m4a", b"x")], "no-audio", '"k.m4a"'),
        ([("k.wav", b"x"), ("k.json", b"{")], "bad-json", "not valid JSON"),
        ([("k.wav", b"x"), ("k.json", b"")], "bad-json", "not valid JSON"),
        ([("k.wav", b"x"), ("k.json", b"3")], "bad-json", "a JSON int, not an object or a list"),
        ([("k.wav", b"x"), ("k.json", b"null")], "bad-json", "NoneType"),
        ([("k.wav", b"x"), ("k.json", b'{"a": "\xff"}')], "bad-json", "UTF-8"),
        ([("k.wav", b"x"), ("k.json", b"[" * 200_000)], "bad-json", "JSON"),
        ([("k.json", b"{"), ("k.wav", b"x")], "bad-json", "JSON"),
    ],
)
def test_an_incomplete_sample_is_a_named_failure(
    tmp_path: Path, name: str, files: list[Member], kind: str, words: str
) -> None:
    before, after = pairs(["a"]), pairs(["z"])
    found = list(iter_samples(write(tmp_path, [*before, *files, *after], name), shard="part-1"))
    assert sorted(s.key for s in found) == ["a", "k", "z"]
    (failure,) = (s for s in found if isinstance(s, Failure))
    assert (failure.key, failure.shard, failure.kind) == ("k", "part-1", kind)
    assert words in failure.reason


def test_other_files_are_no_samples(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    others: list[Member | tarfile.TarInfo] = [
        folder, ("README", b"x"), ("a.txt", b"x"), ("__meta__/a.json", b"{}"), (".json", b"{}"), ("v.1/README", b"x"),
    ]  # fmt: skip
    assert [s.key for s in iter_samples(write(tmp_path, [*others, *pairs(["a"])]))] == ["a"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_instead_of_audio_is_a_failure_that_says_so(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("k.wav")
    link.type, link.linkname = kind, "/etc/passwd"
    for name in ("a.tar", "a.tar.gz"):
        (failure,) = iter_samples(write(tmp_path, [link, ("k.json", b"{}")], name))
        assert isinstance(failure, Failure)
        assert failure.kind == "no-audio"
        assert '"k.wav" is a link or device' in failure.reason


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("k.wav")
    sparse.type = tarfile.GNUTYPE_SPARSE
    with pytest.raises(ShardError, match=r"k\.wav.*sparse"):
        list(iter_samples(write(tmp_path, [sparse])))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("a.wav", b"x"), ("a.json", b"{}"), ("a.wav", b"y")], '"a.wav" appears twice'),
        ([("a.wav", b"x"), ("a.wav", b"y"), ("a.json", b"{}")], '"a.wav" appears twice'),
        ([("a.wav", b"x"), ("a.json", b"{}"), ("a.json", b"{}")], '"a.json" appears twice'),
        ([("a.json", b"{"), ("a.json", b"{}"), ("a.wav", b"x")], '"a.json" appears twice'),
        ([("a.wav", b"x"), ("a.flac", b"x"), ("a.json", b"{}")], "two audio files, .wav and .flac"),
        ([*pairs(["a", "b", "a"])], '"a.wav" appears twice'),
    ],
)
def test_a_key_that_is_not_unique_refuses_the_shard(tmp_path: Path, name: str, files: list[Member], words: str) -> None:
    with pytest.raises(ShardError) as raised:
        list(iter_samples(write(tmp_path, files, name)))
    assert 'key "a" is not unique' in raised.value.message
    assert words in raised.value.message
    assert raised.value.where is not None
    assert raised.value.where.endswith(name)


@pytest.mark.parametrize("packed", [False, True])
def test_a_shard_cut_at_any_byte_is_refused(tmp_path: Path, packed: bool) -> None:
    """Also on the boundary of a member, inside of padding, and between the two end blocks."""
    data = tar_bytes([("a.wav", b"x" * 700), ("a.json", b"{}"), ("b.wav", b"y" * 512), ("b.json", b"{}")])
    end = len(data.rstrip(b"\0"))
    end += -end % 512 + 1024
    path = tmp_path / "a.tar"
    cuts = {*range(0, end, 97), *range(0, end, 512), *range(1, end, 512), *range(511, end, 512), end - 1}
    for cut in sorted(cuts):
        path.write_bytes(gzip.compress(data[:cut], compresslevel=1) if packed else data[:cut])
        with pytest.raises(ShardError) as raised:
            list(iter_samples(path))
        assert raised.value.where == str(path), cut
    path.write_bytes(gzip.compress(data[:end]) if packed else data[:end])
    assert [s.key for s in iter_samples(path)] == ["a", "b"]


def test_a_cut_names_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(pairs(["a"]))[:1000])
    with pytest.raises(ShardError, match="cut short at byte 1000"):
        list(iter_samples(path))


def test_gzip_cut_or_changed_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    data = gzip.compress(tar_bytes(pairs(["a"], samples=300)), mtime=0)
    path.write_bytes(data)
    intact, refused = list(iter_samples(path)), 0
    for cut in range(2, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(ShardError):
            list(iter_samples(path))
    for at in range(12, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 0x10
        path.write_bytes(changed)
        try:
            found = list(iter_samples(path))
        except ShardError:
            refused += 1
        else:  # a zero copied from elsewhere is still a zero
            assert found == intact
    assert refused > 50


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 5 * 512 + 1023), value=st.integers(0, 255))
def test_a_changed_byte_never_makes_a_sample_vanish(tmp_path: Path, at: int, value: int) -> None:
    data = bytearray(tar_bytes([("a.wav", b"x" * 512), ("a.json", b"{}")]))
    data[at] = value
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    try:
        found = list(iter_samples(path))
    except ShardError:
        return
    assert found, at


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello", "not a tar archive"),
        (b"hello " * 1000, "not a tar archive"),
        (b"RIFF" + bytes(2000), "not a tar archive"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (gzip.compress(b"hello" * 1000, mtime=0), "not a tar archive"),
        (b"\x1f\x8b" + b"x" * 600, "corrupt"),
    ],
)
def test_what_is_not_a_tar_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=words):
        list(iter_samples(path))


def test_an_archive_joined_to_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for packed in (False, True):
        data = tar_bytes(pairs(["a"])) + tar_bytes(pairs(["b"]))
        path.write_bytes(gzip.compress(data) if packed else data)
        with pytest.raises(ShardError, match="data after the end of the archive at byte 10240"):
            list(iter_samples(path))


def test_a_missing_shard_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="No such file"):
        list(iter_samples(tmp_path / "a.tar"))
    with pytest.raises(ShardError, match="directory"):
        list(iter_samples(tmp_path))


def test_an_empty_archive_has_no_samples(tmp_path: Path) -> None:
    assert list(iter_samples(write(tmp_path, []))) == []


def test_a_plain_shard_is_checked_before_its_first_sample(tmp_path: Path) -> None:
    path = write(tmp_path, pairs(["a", "b"]))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ShardError):
        next(iter_samples(path))


def test_a_shard_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, pairs(["a"]))
    (sample,) = iter_samples(path)
    assert isinstance(sample, Sample)
    assert isinstance(sample.audio, FileRange)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ShardError, match="shorter"):
        sample.audio.read()
    path.unlink()
    with pytest.raises(ShardError, match="no longer"):
        sample.audio.read()


def test_the_real_shards(esc10_dir: Path) -> None:
    for path in sorted(esc10_dir.glob("*.tar")):
        found = list(iter_samples(path))
        assert len(found) == 80
        assert all(isinstance(sample, Sample) and sample.ext == "ogg" for sample in found)

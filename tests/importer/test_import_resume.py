"""Imports that are cut, resumed, changed or refused; the same audio under two names."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from tests.importer.material import RATE_HZ, class_folder, content, members, sound, write_csv, write_files, write_sound
from xares_store import import_audio, load_task
from xares_store.errors import AudioError, ConfigError, ProtocolError, StoreError
from xares_store.importer import examine, state
from xares_store.importer.imports import plan_import

KILLS = 8
SCRIPT = """
import sys, time
from xares_store.importer import examine
from xares_store.importer.imports import import_audio
decode = examine.decode
examine.decode = lambda data: (time.sleep(0.004), decode(data))[1]
print("go", flush=True)
report = import_audio(sys.argv[1], name="x", out=sys.argv[2], shard_clips=4, workers=int(sys.argv[3]), folds=3)
print("done", report.reused_shards, flush=True)
"""


def start(source: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(source), str(out), str(workers)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("duplicates", [False, True])
def test_an_import_killed_at_random_moments_ends_byte_for_byte_as_uninterrupted(
    tmp_path: Path, duplicates: bool
) -> None:
    source = class_folder(tmp_path / "source", each=20)
    if duplicates:  # so many that the splits are dealt again, which writes all shards a second time
        for number in range(6):
            shutil.copy(
                source / "cat" / f"cat{number}.{'wav' if number % 2 else 'flac'}", source / "cat" / f"zz{number}.wav"
            )
    began = time.perf_counter()
    process = start(source, tmp_path / "whole", 1)
    began = time.perf_counter()
    assert "done 0" in process.communicate(timeout=60)[0]
    span = time.perf_counter() - began
    wanted = content(tmp_path / "whole")
    rng = random.Random(3)
    kills = rounds = reused = 0
    while kills < KILLS // (1 + duplicates):
        out = tmp_path / f"killed-{rounds}"
        while True:
            process = start(source, out, rng.choice([1, 2, 3]))
            try:
                output = process.communicate(timeout=rng.uniform(0.1, 0.9) * span)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output = process.communicate()[0]
            if process.returncode == 0:
                reused = max(reused, int(output.split()[-1]))
                break
            assert process.returncode == -signal.SIGKILL
            kills += 1
        assert content(out) == wanted
        rounds += 1
    assert reused > 0


def count_decodes(monkeypatch: pytest.MonkeyPatch, *, stop_after: int | None = None) -> list[int]:
    """Count decoded files; raise what Ctrl-C raises after so many."""
    decoded = [0]
    decode = examine.decode

    def counting(data: bytes) -> object:
        decoded[0] += 1
        if stop_after is not None and decoded[0] > stop_after:
            raise KeyboardInterrupt
        return decode(data)

    monkeypatch.setattr(examine, "decode", counting)
    return decoded


def test_every_file_is_decoded_once_and_a_resumed_import_decodes_only_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = class_folder(tmp_path / "source", each=40)
    count_decodes(monkeypatch, stop_after=90)
    with pytest.raises(KeyboardInterrupt):
        import_audio(source, name="x", out=tmp_path / "out", shard_clips=10, workers=1)
    monkeypatch.undo()
    there = sorted(path.name for path in (tmp_path / "out" / "x").glob("*.tar"))
    assert there
    assert not (tmp_path / "out" / "x.toml").exists()
    decoded = count_decodes(monkeypatch)
    report = import_audio(source, name="x", out=tmp_path / "out", shard_clips=10, workers=1)
    assert report.reused_shards == len(there)
    assert decoded[0] == 120 - 10 * len(there) + sum(
        10 - len(members(tmp_path / "out", "x")[name]) // 2 for name in there
    )
    again = import_audio(source, name="x", out=tmp_path / "out", shard_clips=10)
    assert decoded[0] <= 120
    assert (again.clips, again.splits, again.reused_shards) == (
        120,
        report.splits,
        sum(s.shards for s in report.splits),
    )
    assert not (tmp_path / "out" / "x" / ".import").exists()


def test_a_changed_source_begins_anew_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folder(tmp_path / "source", each=20)
    count_decodes(monkeypatch, stop_after=40)
    with pytest.raises(KeyboardInterrupt):
        import_audio(source, name="x", out=tmp_path / "out", shard_clips=4, workers=1)
    monkeypatch.undo()
    write_sound(source / "cat" / "cat0.flac", 1000)
    report = import_audio(source, name="x", out=tmp_path / "out", shard_clips=4)
    assert report.reused_shards == 0
    assert any("began anew" in note for note in report.notes)
    assert not any(
        "began anew" in note for note in import_audio(source, name="x", out=tmp_path / "out", shard_clips=4).notes
    )
    stored = {name: data for shard in members(tmp_path / "out", "x").values() for name, data in shard.items()}
    assert stored["cat__cat0.flac"] == (source / "cat" / "cat0.flac").read_bytes()


def test_a_finished_import_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source, out = class_folder(tmp_path / "source"), tmp_path / "out"
    import_audio(source, name="x", out=out)
    before = content(out)
    with pytest.raises(ConfigError, match="--replace"):
        import_audio(source, name="x", out=out, folds=2)
    assert content(out) == before
    report = import_audio(source, name="x", out=out, folds=2, replace=True)
    assert len(report.splits) == 2
    assert sorted(path.name for path in (out / "x").glob("*.tar")) == ["x-fold-1-000000.tar", "x-fold-2-000000.tar"]


def test_a_shard_that_is_gone_from_a_finished_import_is_made_again(tmp_path: Path) -> None:
    source, out = class_folder(tmp_path / "source"), tmp_path / "out"
    import_audio(source, name="x", out=out)
    before = content(out)
    (out / "x" / "x-fold-2-000000.tar").unlink()
    import_audio(source, name="x", out=out)
    assert content(out) == before


def test_two_imports_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    source, out = class_folder(tmp_path / "source"), tmp_path / "out"
    working = state.Working(out / "x", out / "x.toml")
    with working.claimed(), pytest.raises(ConfigError, match="Another process"):
        import_audio(source, name="x", out=out)
    assert import_audio(source, name="x", out=out).clips == 18


def test_bad_files_are_refused_by_name_then_left_out_without_reading_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = class_folder(tmp_path / "source"), tmp_path / "out"
    whole = (source / "dog" / "dog1.wav").read_bytes()
    (source / "dog" / "dog1.wav").write_bytes(whole[: len(whole) // 2])
    (source / "owl" / "owl2.flac").write_bytes(b"no audio at all")
    (source / "owl" / "owl4.flac").write_bytes(b"")
    soundfile.write(source / "cat" / "cat1.wav", sound(0)[:0], RATE_HZ)
    with pytest.raises(AudioError, match="4 of 18 files") as caught:
        import_audio(source, name="x", out=out, folds=2)
    for name in (
        "dog/dog1.wav (undecodable): The file is cut short",
        "owl/owl2.flac",
        "owl/owl4.flac",
        "cat/cat1.wav (empty)",
    ):
        assert name in str(caught.value)
    assert not (out / "x.toml").exists()
    decoded = count_decodes(monkeypatch)
    report = import_audio(source, name="x", out=out, folds=2, skip_bad=True)
    assert decoded[0] == 0
    assert [path for path, _, _ in report.failures] == [
        "cat/cat1.wav",
        "dog/dog1.wav",
        "owl/owl2.flac",
        "owl/owl4.flac",
    ]
    assert report.clips == 14 == sum(len(shard) for shard in members(out, "x").values()) / 2
    assert import_audio(source, name="x", out=out, folds=2).failures == report.failures


def test_a_shard_of_bad_files_only_is_no_part_of_the_task(tmp_path: Path) -> None:
    rows = [{"path": f"{n}.wav", "label": "ab"[n % 2], "split": "test" if n > 5 else "train"} for n in range(10)]
    source = write_files(tmp_path / "source", [str(row["path"]) for row in rows])
    manifest = write_csv(source / "m.csv", rows)
    planned = plan_import(manifest, name="x", out=tmp_path / "out", shard_clips=2)
    for clip in planned.plan.shards[1].clips:
        (source / clip.record.path).write_bytes(b"broken")
    report = import_audio(manifest, name="x", out=tmp_path / "out", shard_clips=2, skip_bad=True)
    patterns = load_task(report.task).split_patterns()["train"]
    assert patterns == ("x-train-000000.tar", "x-train-000002.tar")
    assert sorted(members(tmp_path / "out", "x")) == [*sorted(
        ["x-train-000000.tar", "x-train-000002.tar", "x-test-000000.tar", "x-test-000001.tar"])]  # fmt: skip


def crossing(tmp_path: Path) -> tuple[Path, Path]:
    """Given splits with the same audio in train (wav) and test (flac, with a tag), and twice in train."""
    rows = [{"path": f"{n}.wav", "label": "ab"[n % 2], "split": "test" if n > 5 else "train"} for n in range(9)]
    source = write_files(tmp_path / "source", [str(row["path"]) for row in rows])
    with soundfile.SoundFile(source / "9.flac", "w", RATE_HZ, 1, "PCM_16") as file:
        file.title = "the same again"
        file.write(sound(2))
    shutil.copy(source / "1.wav", source / "10.wav")
    rows += [{"path": "9.flac", "label": "a", "split": "test"}, {"path": "10.wav", "label": "a", "split": "train"}]
    return source, write_csv(source / "m.csv", rows)


def test_the_same_audio_in_two_splits_is_refused_whatever_its_format_and_tags(tmp_path: Path) -> None:
    _, manifest = crossing(tmp_path)
    with pytest.raises(ProtocolError, match="1 times") as caught:
        import_audio(manifest, name="x", out=tmp_path / "out")
    assert "2.wav [train] = 9.flac [test]" in str(caught.value)
    assert not (tmp_path / "out" / "x.toml").exists()
    report = import_audio(manifest, name="x", out=tmp_path / "out", allow_duplicates=True)
    assert report.clips == 11
    first, second = report.duplicates
    assert (first.files, first.crosses, first.labels) == ((("2.wav", "train"), ("9.flac", "test")), True, ())
    assert (second.files, second.crosses) == ((("1.wav", "train"), ("10.wav", "train")), False)
    assert second.labels == ("a", "b")  # the same audio under two labels: somebody made a mistake


def test_splits_that_are_made_keep_the_same_audio_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folder(tmp_path / "source", each=10)
    for number in range(1, 10, 2):
        shutil.copy(source / "cat" / f"cat{number}.wav", source / "cat" / f"copy{number}.wav")
        soundfile.write(source / "cat" / f"other{number}.flac", *soundfile.read(source / "cat" / f"cat{number}.wav", dtype="int16"))  # fmt: skip
    decoded = count_decodes(monkeypatch)
    report = import_audio(source, name="x", out=tmp_path / "out", workers=1)
    assert decoded[0] == 30 + 5  # copies are not even decoded, and nothing is twice
    assert len(report.duplicates) == 5
    assert not any(one.crosses for one in report.duplicates)
    assert report.clips == 40
    assert all(split.classes == 3 for split in report.splits)
    assert len({name for shard in members(tmp_path / "out", "x").values() for name in shard}) == 80


def test_a_file_that_changes_while_it_is_imported_is_named(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source")
    planned = plan_import(source, name="x", out=tmp_path / "out")
    with (source / "dog" / "dog1.wav").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(AudioError, match="changed while") as caught:
        planned.run()
    assert "dog1.wav" in str(caught.value)
    assert not (tmp_path / "out" / "x.toml").exists()


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folder(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(state.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"only 0\.0 MB are free"):
        import_audio(source, name="x", out=tmp_path / "out")
    assert not (tmp_path / "out" / "x").exists()


def test_a_dry_run_writes_nothing_and_says_what_would_be_made(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source")
    (source / "cat" / "bad.wav").write_bytes(b"broken")
    dry = import_audio(source, name="x", out=tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert dry.dry_run
    assert (dry.clips, dry.labels, len(dry.splits)) == (18, ("cat", "dog", "owl"), 5)
    assert dry.seconds == pytest.approx(18 * 0.25)
    assert [path for path, _, _ in dry.failures] == ["cat/bad.wav"]
    (source / "cat" / "bad.wav").unlink()
    assert import_audio(source, name="x", out=tmp_path / "out").splits == import_audio(source, name="x", out=tmp_path / "out", dry_run=True).splits  # fmt: skip


def test_nobody_claims_a_folder_while_its_import_is_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working, other = (state.Working(tmp_path / "x", tmp_path / "x.toml") for _ in range(2))
    refused: list[str] = []

    def rmtree(path: Path, *, ignore_errors: bool) -> None:
        try:
            with other.claimed():
                pass
        except ConfigError as error:
            refused.append(error.message)

    with monkeypatch.context() as patch, working.claimed():
        patch.setattr("xares_store.importer.state.shutil.rmtree", rmtree)
    assert refused == ["Another process is importing into this folder."]

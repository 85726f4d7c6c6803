"""Phase one end to end on generated audio: what goes in comes out, whatever the batches, workers and interruptions."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.toy import ENCODER, Toy, tone, wav, write_tar
from xares_store.errors import ConfigError, EncoderError, ShardError
from xares_store.runs.embed import embed
from xares_store.runs.estimate import COLUMNS, estimate
from xares_store.store.store import Store


def frames_by_clip(store: Path) -> dict[str, np.ndarray]:
    found = {}
    for part in Store.open(store).parts():
        for row, name in enumerate(part.clips().column("clip_id").to_pylist()):
            found[name] = part.frames(row)
    return found


def pooled_by_clip(store: Path) -> dict[str, np.ndarray]:
    found = {}
    for part in Store.open(store).parts():
        for name, vector in zip(part.clips().column("clip_id").to_pylist(), part.pooled(), strict=True):
            found[name] = vector
    return found


def test_every_clip_in_is_a_clip_out_with_its_label_and_frames(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    report = embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    assert (report.clips, report.parts, report.failures, report.broken) == (toy.clips, len(toy.shards), [], [])
    store = Store.open(tmp_path / "s")
    clips = store.clips()
    assert clips.num_rows == toy.clips
    for row in clips.to_pylist():
        assert json.loads(row["label"])["kind"] in ("hum", "hiss", "chirp")
        assert row["n_frames"] == -(-round(row["duration_s"] * 16000) // 320)
    for name, frames in frames_by_clip(tmp_path / "s").items():
        assert np.isfinite(frames).all()
        np.testing.assert_allclose(
            pooled_by_clip(tmp_path / "s")[name], frames.astype(np.float64).mean(0), rtol=2e-3, atol=2e-3
        )


def test_an_embedding_belongs_to_its_clip_alone(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    """Promise 1: batch budget, worker count, neighbours and order change nothing beyond float rounding."""
    spec, task = str(encoder_file), str(toy.task)
    embed(spec, [task], store=tmp_path / "one", data=toy.root, workers=0, batch_seconds=0.1)
    embed(spec, [task], store=tmp_path / "many", data=toy.root, workers=2, batch_seconds=30)
    for shard in toy.shards:  # the same clips in reverse order, half of them gone
        with tarfile.open(shard) as tar:
            members = [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
        pairs = [members[index : index + 2] for index in range(0, len(members), 2)][::-2]
        write_tar(shard, [member for pair in pairs for member in pair])
    embed(spec, [task], store=tmp_path / "reversed", data=toy.root, workers=1, batch_seconds=5)
    one, many, fewer = (pooled_by_clip(tmp_path / name) for name in ("one", "many", "reversed"))
    assert one.keys() == many.keys()
    assert len(one) == toy.clips
    assert 0 < len(fewer) < toy.clips
    for other in (many, fewer):
        for name, vector in other.items():
            np.testing.assert_allclose(vector, one[name], rtol=1e-5, atol=1e-6)
    frames_one, frames_many = frames_by_clip(tmp_path / "one"), frames_by_clip(tmp_path / "many")
    for name, frames in frames_one.items():
        np.testing.assert_allclose(frames_many[name], frames, rtol=2e-3, atol=1e-3)


PADDED = '''
import torch

class MaskedEncoder(torch.nn.Module):
    """Takes lengths: padding cannot reach valid frames."""
    sampling_rate, output_dim, hop_size_in_ms = 16000, 8, 20
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(320, 8, generator=torch.Generator().manual_seed(1)))
    def forward(self, audio, lengths=None):
        frames = audio[:, : audio.shape[1] // 320 * 320].unflatten(1, (-1, 320)) @ self.weight
        if lengths is None:
            return frames, None
        return frames, torch.clamp(lengths // 320, min=1)
'''


def test_padding_frames_are_never_stored(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "masked.py"
    path.write_text(PADDED)
    embed(str(path), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0, batch_seconds=60)
    for row in Store.open(tmp_path / "s").clips().to_pylist():
        assert row["n_frames"] == round(row["duration_s"] * 16000) // 320


def test_a_second_run_does_nothing_and_a_new_shard_only_itself(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    spec, task, store = str(encoder_file), str(toy.task), tmp_path / "s"
    last = toy.shards[-1]
    backup = shutil.move(last, tmp_path / "later.tar")
    with pytest.raises(ShardError, match=r"fold3\.tar"):
        embed(spec, [task], store=store, data=toy.root, workers=0)
    shutil.move(backup, last)
    first = embed(spec, [task], store=store, data=toy.root, workers=0)
    before = {part.path: part.manifest.digest for part in Store.open(store).parts()}
    again = embed(spec, [task], store=store, data=toy.root, workers=0)
    assert (first.parts, again.parts, again.clips, again.reused_shards) == (4, 0, 0, 4)
    assert {part.path: part.manifest.digest for part in Store.open(store).parts()} == before


def test_changed_audio_is_never_taken_for_the_old(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    """Promise 3: the shard's content is part of the identity."""
    spec, task, store = str(encoder_file), str(toy.task), tmp_path / "s"
    embed(spec, [task], store=store, data=toy.root, workers=0)
    rng = np.random.default_rng(9)
    write_tar(toy.shards[0], [("new.wav", wav(tone("hum", 0.3, 16000, rng))), ("new.json", b'{"kind": "hum"}')])
    report = embed(spec, [task], store=store, data=toy.root, workers=0)
    assert not report.ok
    assert [shard for _, shard, _ in report.broken] == ["fold-0/fold0"]
    assert "changed since" in report.broken[0][2]
    assert str(toy.shards[0]) in report.broken[0][2]
    assert Store.open(store).clips().num_rows == toy.clips


def test_same_class_with_other_weights_or_arguments_is_another_encoder(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "enc.py"
    path.write_text(ENCODER)
    store = tmp_path / "s"
    for args in ({}, {"seed": "1"}):
        embed(str(path), [str(toy.task)], store=store, data=toy.root, workers=0, encoder_args=args)
    path.write_text(ENCODER.replace("/ 18", "/ 17"))
    embed(str(path), [str(toy.task)], store=store, data=toy.root, workers=0)
    assert len(Store.open(store).encoders()) == 3
    assert Store.open(store).clips().num_rows == 3 * toy.clips


def test_long_clips_are_cropped_and_nothing_is_lost_with_keep(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path
) -> None:
    toy = make_toy(audio='[audio]\ncrop_s = 0.2\ntail = "keep"\nmin_tail_s = 0.05', seconds=(0.1, 0.9))
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    by_key: dict[str, list[dict[str, object]]] = {}
    for row in Store.open(tmp_path / "s").clips().to_pylist():
        by_key.setdefault(row["key"], []).append(row)
    assert len(by_key) == toy.clips
    assert max(map(len, by_key.values())) >= 4
    for rows in by_key.values():
        rows.sort(key=lambda row: row["crop"])
        assert [row["clip_id"] for row in rows] == [f"{rows[0]['key']}#{index:04d}" for index in range(len(rows))]
        ends = [0.0] + [row["start_s"] + row["duration_s"] for row in rows]
        np.testing.assert_allclose([row["start_s"] for row in rows], ends[:-1], atol=1e-9)


def test_a_very_large_shard_becomes_several_parts_that_resume(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(folds=3, per_fold=30)
    monkeypatch.setattr("xares_store.runs.embed.MIN_WINDOW_S", 2.0)
    arguments = {"data": toy.root, "workers": 0, "batch_seconds": 0.1}
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "whole", **arguments)
    monkeypatch.setattr("xares_store.runs.shard_run.PART_BYTES", 6000)
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", **arguments)
    parts = Store.open(tmp_path / "s").parts()
    assert len(parts) > 2 * 3
    removed = [part for part in parts if part.address.sequence >= 1 and part.address.split == "fold-1"]
    for part in removed:
        shutil.rmtree(part.path)
    report = embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", **arguments)
    assert report.parts == len(removed)
    after = {part.path: part.manifest.digest for part in Store.open(tmp_path / "s").parts()}
    assert after == {part.path: part.manifest.digest for part in parts}
    whole, cut = frames_by_clip(tmp_path / "whole"), frames_by_clip(tmp_path / "s")
    assert whole.keys() == cut.keys()
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)


def test_bad_samples_are_named_failures_and_the_others_are_embedded(
    toy: Toy, encoder_file: Path, tmp_path: Path
) -> None:
    """Promise 2."""
    rng = np.random.default_rng(1)
    good = wav(tone("hum", 0.3, 16000, rng))
    label = b'{"kind": "hum"}'
    nan = wav(np.array([0.1, np.nan, 0.2] * 2000, dtype=np.float32), subtype="FLOAT")
    write_tar(
        toy.shards[0],
        [
            ("a.wav", good), ("a.json", label),
            ("text.wav", b"this is not audio"), ("text.json", label),
            ("empty.wav", wav(np.zeros(0, np.float32))), ("empty.json", label),
            ("nan.wav", nan), ("nan.json", label),
            ("nojson.wav", good),
            ("badjson.wav", good), ("badjson.json", b"{kind: hum}"),
            ("noaudio.json", label),
            ("z.wav", good), ("z.json", label),
        ],
    )  # fmt: skip
    report = embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    kinds = {failure.key: failure.kind for failure in report.failures}
    assert kinds == {
        "text": "undecodable", "empty": "empty", "nan": "not-finite", "nojson": "no-json", "badjson": "bad-json",
        "noaudio": "no-audio",
    }  # fmt: skip
    assert not report.ok
    assert not report.broken
    assert report.clips == toy.clips - 9 + 2
    stored = Store.open(tmp_path / "s").sql("select key, kind, shard from failures order by key").to_pylist()
    assert {row["key"]: row["kind"] for row in stored} == kinds
    assert {row["shard"] for row in stored} == {"fold0"}
    part = next(part for part in Store.open(tmp_path / "s").parts() if part.address.shard == "fold0")
    counts = part.manifest.counts
    assert counts.samples == counts.clips + counts.failures == 8


def test_an_unreadable_shard_is_named_and_the_others_are_embedded(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    whole = toy.shards[1].read_bytes()
    toy.shards[1].write_bytes(whole[: len(whole) // 2])
    report = embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=2)
    assert [shard for _, shard, _ in report.broken] == ["fold-1/fold1"]
    assert report.clips == toy.clips - 9
    assert report.parts == 3
    toy.shards[1].write_bytes(whole)
    assert embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0).ok
    assert Store.open(tmp_path / "s").clips().num_rows == toy.clips


BREAKS_ON_LOUD = ENCODER.replace(
    "        pad =",
    '        if audio.abs().mean(1).max() > 0.9:\n            raise ValueError("too loud for me")\n        pad =',
)
NAN_ON_LOUD = ENCODER.replace(
    "        return torch.log1p",
    "        if audio.abs().mean(1).max() > 0.9:\n            frames = frames * float('nan')\n        return torch.log1p",
)


@pytest.mark.parametrize(("source", "words"), [(BREAKS_ON_LOUD, "too loud for me"), (NAN_ON_LOUD, "NaN")])
def test_a_clip_that_breaks_the_encoder_is_a_named_failure(toy: Toy, tmp_path: Path, source: str, words: str) -> None:
    path = tmp_path / "enc.py"
    path.write_text(source)
    loud = np.ones(4000, np.float32) * 0.99
    with tarfile.open(toy.shards[2]) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
    write_tar(toy.shards[2], [*members, ("loud.wav", wav(loud)), ("loud.json", b'{"kind": "hum"}')])
    report = embed(str(path), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0, batch_seconds=60)
    assert [(failure.key, failure.kind) for failure in report.failures] == [("loud", "encoder")]
    assert words in report.failures[0].reason
    assert report.clips == toy.clips


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path
) -> None:
    toy = make_toy(equal=True)
    greedy = tmp_path / "greedy.py"
    full = "        if len(audio) > 2:\n            raise torch.cuda.OutOfMemoryError('too much')\n        pad ="
    greedy.write_text(ENCODER.replace("        pad =", full))
    arguments = {"data": toy.root, "workers": 0, "batch_seconds": 60}
    report = embed(str(greedy), [str(toy.task)], store=tmp_path / "s", **arguments)
    assert report.ok
    assert report.clips == toy.clips
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "t", **arguments)
    found, wanted = pooled_by_clip(tmp_path / "s"), pooled_by_clip(tmp_path / "t")
    assert found.keys() == wanted.keys()
    for name, vector in found.items():
        np.testing.assert_allclose(vector, wanted[name], rtol=1e-5, atol=1e-6)
    never = tmp_path / "never.py"
    never.write_text(greedy.read_text().replace("len(audio) > 2", "audio.shape[1] > 9000"))
    with pytest.raises(EncoderError, match="memory"):
        embed(str(never), [str(toy.task)], store=tmp_path / "u", **arguments)


def test_an_encoder_that_always_fails_stops_the_run_and_stores_nothing(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "enc.py"
    path.write_text(ENCODER.replace("        pad =", '        raise ValueError("never")\n        pad ='))
    with pytest.raises(EncoderError, match="never"):
        embed(str(path), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    assert Store.open(tmp_path / "s").parts() == []


def test_estimate_agrees_with_what_is_stored_and_writes_nothing(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    rows = estimate(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root)
    assert not (tmp_path / "s").exists()
    table = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    assert sum(row["clips"] for row in table) == toy.clips
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    clips = Store.open(tmp_path / "s").clips().to_pylist()
    assert sum(row["hours"] for row in table) * 3600 == pytest.approx(sum(row["duration_s"] for row in clips), rel=1e-6)
    arrays = sum(row["n_frames"] for row in clips) * 24 * 2 + toy.clips * 24 * 4
    assert sum(row["store_mb"] for row in table) * 1e6 == pytest.approx(arrays, rel=0.05)
    done = estimate(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root)
    assert all(row[COLUMNS.index("clips")] == 0 and row[COLUMNS.index("stored")] == 1 for row in done)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"workers": -1}, "-1"),
        ({"batch_seconds": 0.0}, "more than 0 s"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    toy: Toy, encoder_file: Path, tmp_path: Path, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, **arguments)
    assert not (tmp_path / "s" / "embeddings").exists()


def test_float32_is_stored_when_asked_for_and_never_mixed_silently(
    toy: Toy, encoder_file: Path, tmp_path: Path
) -> None:
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0, dtype="float32")
    assert {part.manifest.dtype for part in Store.open(tmp_path / "s").parts()} == {"float32"}
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "h", data=toy.root, workers=0)
    with pytest.raises(ConfigError, match="float16 already"):
        embed(str(encoder_file), [str(toy.task)], store=tmp_path / "h", data=toy.root, workers=0, dtype="float32")


def test_labels_that_do_not_fit_are_said_at_once_and_one_shard_can_be_made_again(
    toy: Toy, encoder_file: Path, tmp_path: Path
) -> None:
    before = toy.shards[1].read_bytes()
    toy.shards[1].write_bytes(before.replace(b'"hiss"', b'"hism"', 1))
    arguments = {"store": tmp_path / "s", "data": toy.root, "workers": 0}
    report = embed(str(encoder_file), [str(toy.task)], **arguments)
    assert report.clips == toy.clips
    assert not report.ok
    ((task, place, message),) = report.bad_labels
    assert (task, place) == ("toy", "fold-1/fold1/f1c001")
    assert "hism" in message
    toy.shards[1].write_bytes(before)
    changed = embed(str(encoder_file), [str(toy.task)], **arguments)
    assert "store rm --shard fold-1/fold1" in changed.broken[0][2]
    store = Store.open(tmp_path / "s")
    assert len(store.rm(encoder="BandEncoder", task="toy", shard="fold-1/fold1").parts) == 1
    again = embed(str(encoder_file), [str(toy.task)], **arguments)
    assert (again.ok, again.clips, again.parts) == (True, 9, 1)


def test_recorded_failures_are_said_again(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    write_tar(toy.shards[0], [("x.wav", b"noise"), ("x.json", b'{"kind": "hum"}')])
    arguments = {"store": tmp_path / "s", "data": toy.root, "workers": 0}
    assert len(embed(str(encoder_file), [str(toy.task)], **arguments).failures) == 1
    again = embed(str(encoder_file), [str(toy.task)], **arguments)
    assert (again.failures, again.stored_failures, again.ok) == ([], 1, True)


def test_a_shard_without_audio_is_named(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    write_tar(toy.shards[3], [("readme.txt", b"nothing here")])
    report = embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    assert not report.ok
    ((_, place, message),) = report.broken
    assert place == "fold-3/fold3"
    assert "no audio" in message

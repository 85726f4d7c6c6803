"""Phase one against its bounds: the encoder alone, decoding alone, and the best batch budget of a sweep."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.common import Row, audio_task, show
from xares_store.audio.batches import group_batches
from xares_store.audio.decode import DecodePool
from xares_store.audio.shards import Shard, iter_samples
from xares_store.audio.waveform import CropRule
from xares_store.clip import Failure
from xares_store.device import set_threads, usable_cores
from xares_store.encoders.encoder import Encoder, load_encoder
from xares_store.runs.embed import embed
from xares_store.runs.plan import select_tasks
from xares_store.store.store import Store

CONV = '''
import torch

class ConvEncoder(torch.nn.Module):
    """A small convolutional transformer: the cost of a real encoder, random weights."""
    sampling_rate, output_dim, hop_size_in_ms = 16000, 192, 20
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.front = torch.nn.Conv1d(1, 192, 400, stride=320, padding=40)
        layer = torch.nn.TransformerEncoderLayer(192, 4, 768, batch_first=True, dropout=0.0)
        self.body = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    def forward(self, audio):
        return self.body(self.front(audio.unsqueeze(1)).transpose(1, 2))
'''
CHEAP = '''
import torch

class MeanEncoder(torch.nn.Module):
    """Almost nothing to compute: what is left is reading, decoding, resampling and writing."""
    sampling_rate, output_dim, hop_size_in_ms = 16000, 32, 20
    def forward(self, audio):
        pad = -audio.shape[1] % 320
        return torch.nn.functional.pad(audio, (0, pad)).unflatten(1, (-1, 320)).unflatten(2, (32, 10)).abs().mean(3)
'''


def decoded(shards: list[Shard], rate_hz: int, workers: int) -> Iterator[np.ndarray]:
    with DecodePool(workers) as pool:
        for shard in shards:
            rule = CropRule(None, "drop", 0.5)
            for content in pool.map(iter_samples(shard.path), shard=shard.name, rate_hz=rate_hz, crop=rule):
                if not isinstance(content, Failure):
                    yield from (item.audio for item in content)


def forward_all(encoder: Encoder, waves: list[np.ndarray], budget_s: float) -> tuple[float, float]:
    """Encode everything in batches of a budget; return wall and processor seconds."""
    lengths = [len(wave) for wave in waves]
    budget = max(1, round(budget_s * encoder.sample_rate_hz))
    batches = group_batches(lengths, budget=budget, equal_only=not encoder.accepts_lengths)
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        audio = torch.from_numpy(np.stack([waves[index] for index in batch]))
        encoder.encode(audio, None)
    return time.perf_counter() - wall, time.process_time() - cpu


def timed_embed(encoder: Encoder, task: Path, data: Path, folder: Path, **more: object) -> tuple[float, float, float]:
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    report = embed(encoder, [str(task)], store=folder, data=data, **more)
    return time.perf_counter() - began, report.encoder_s, next(iter(report.batch_s.values()))


def main() -> list[Row]:
    set_threads()
    task, data = audio_task()
    (_, shards), *_ = select_tasks([str(task)], data)[0]
    cores = usable_cores()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source, stem in ((CONV, "conv"), (CHEAP, "cheap")):
            (folder / f"{stem}.py").write_text(source)
        conv, cheap = (load_encoder(str(folder / f"{stem}.py")) for stem in ("conv", "cheap"))
        cpu = time.process_time()
        waves = list(decoded(shards, conv.sample_rate_hz, 0))
        decode_cpu = time.process_time() - cpu

        ratios, budgets = [], []
        for _ in range(3):
            wall, _, budget_s = timed_embed(conv, task, data, folder / "s")
            forward_wall, forward_cpu = forward_all(conv, waves, budget_s)
            ratios.append(wall / max(forward_wall, (forward_cpu + decode_cpu) / cores))
            budgets.append(budget_s)
        rows.append(Row("embed, wall over max(bare forward, CPU seconds / cores)", ratios, 1.10))

        ratios = []
        for _ in range(3):
            began = time.perf_counter()
            count = sum(1 for _ in decoded(shards, cheap.sample_rate_hz, cores))
            alone = time.perf_counter() - began
            assert count == len(waves)
            ratios.append(timed_embed(cheap, task, data, folder / "s")[0] / alone)
        rows.append(Row("embed with a cheap encoder, wall over decode + resample alone", ratios, 1.25))

        longest = max(len(wave) for wave in waves) / conv.sample_rate_hz
        some = waves[: len(waves) // 4]
        sweep = [longest * count for count in (1, 2, 4, 8, 16, 32)]
        ratios = []
        for budget_s in budgets:
            # The shorter of two runs each: a busy moment must not decide which budget is best.
            times = [min(forward_all(conv, some, fixed)[0] for _ in range(2)) for fixed in [budget_s, *sweep]]
            ratios.append(times[0] / min(times[1:]))
        rows.append(Row("batch budget of the warm-up over the best of a sweep, encoder seconds", ratios, 1.10))

        timed_embed(conv, task, data, folder / "s")
        store = Store.open(folder / "s")
        files = sum(path.stat().st_size for path in folder.joinpath("s").rglob("*") if path.is_file())
        frames = sum(part.manifest.counts.frames * part.manifest.dim * 4 for part in store.parts())
        rows.append(Row("store size over float32 .npy of the same frames", [files / frames], 0.50))
    return rows


if __name__ == "__main__":
    show(main())

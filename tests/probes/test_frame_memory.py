"""A store eight times larger than the memory budget: trained in a process whose memory is watched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.store.conftest import address, put_part
from xares_store.store import Store

MEBIBYTE = 1 << 20
BUDGET, TIMES = 12, 8
# What the allocator holds back and what code takes when it first runs; the same for a store of any size.
SLACK = 45

CHILD = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from xares_store.probes import frame_data
from xares_store.probes.frame import FrameJob, FrameSettings, train_frames
from xares_store.store import Store
from xares_store.store.stream import FrameSource

frame_data.WORK_BYTES = 0  # the budget is for frames alone here
frame_data._SLICE_BYTES = 1 << 20
parts = Store.open(sys.argv[1]).parts()
tables = [part.clips() for part in parts]
place = np.repeat(np.arange(len(parts)), [len(table) for table in tables])
offset, count = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("offset", "n_frames"))
source = FrameSource(parts, place, offset, count)
roll = lambda row: (np.arange(count[row])[:, None] % 3 == np.arange(3)).astype(np.uint8)
rows = np.arange(len(place))

class Score:
    def __init__(self, models):
        self.total = np.zeros(models)
    def add(self, row, logits):
        self.total += (logits > 0).mean(axis=(0, 2))
    def values(self):
        return list(self.total)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def train(train, valid):
    jobs = [FrameJob("a", train, valid, seed) for seed in range(2)]
    settings = FrameSettings(epochs=2, batch_size=4)
    return train_frames(source, roll, 3, jobs, settings, valid_score=Score, memory_bytes=int(sys.argv[2]) << 20,
                        block_bytes=2 << 20)

train(rows[:4], rows[4:6])
before, peak = resident(), 0
def watch():
    global peak
    while True:
        peak = max(peak, resident())
        time.sleep(0.001)
threading.Thread(target=watch, daemon=True).start()
results = train(rows[50:], rows[:50])
print(json.dumps([(peak - before) / (1 << 20), [r.history for r in results], [r.state["fc.weight"].tolist() for r in results]]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_stays_within_the_budget_and_results_stay_the_same(tmp_path: Path) -> None:
    store, rng, total = Store.create(tmp_path / "s"), np.random.default_rng(0), 0
    while total < BUDGET * TIMES * MEBIBYTE:
        frames = [rng.standard_normal((int(rng.integers(20, 400)), 256), dtype=np.float32) for _ in range(120)]
        shard = f"s{len(store.parts()):02d}"
        part = put_part(store, address(shard=shard), dim=256, frames=frames, failures=0)
        total += part.manifest.counts.frames * 256 * 2
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, str(script), str(store.path), str(memory)],
                check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2],
            ).stdout
        )
        for memory in (BUDGET, BUDGET * TIMES * 4)
    ]  # fmt: skip
    (streamed, *results), (kept, *expected) = found
    assert results == expected
    print(f"{streamed:.0f} MiB streamed, {kept:.0f} MiB in memory")
    assert kept > BUDGET * TIMES  # the measurement sees a store that is held in memory
    assert streamed < BUDGET + SLACK

"""A training step of the LLM-projector probe from the store over the same step with the embeddings in memory.

Run ``python -m tests.benchmarks.bench_llm [--hidden N --layers N --steps N --repeats N]``. The decoder is a random one; a
real one takes longer, so that reading weighs less. Runs alternate, so that other load on the machine hits both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.bench_frames import MemoryPeak, make_store
from tests.benchmarks.common import Row, show
from tests.probes.llm.models import save_tiny
from xares_store.catalog import load_recipe
from xares_store.device import set_threads
from xares_store.probes.llm.batches import BatchReader
from xares_store.probes.llm.decoder import find_decoder, load_decoder
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.mixture import Draw, Mixture, Source
from xares_store.probes.llm.model import AudioLm
from xares_store.probes.llm.trainer import TrainPlan, train
from xares_store.store import Store
from xares_store.store.stream import FrameSource

WARM_UP = 4


def source_of(path: Path) -> FrameSource:
    """Return the frames of all clips of a store."""
    parts = Store.open(path).parts()
    tables = [part.clips() for part in parts]
    place = np.repeat(np.arange(len(parts)), [len(table) for table in tables])
    offset, count = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("offset", "n_frames"))
    return FrameSource(parts, place, offset, count)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mebibytes", type=int, default=512, help="of float16 frames in the store")
    options = parser.parse_args()
    set_threads()
    with tempfile.TemporaryDirectory(prefix="xares-bench-") as folder:
        root = Path(folder)
        make_store(root / "s", options.mebibytes << 20)
        source = source_of(root / "s")
        decoder = save_tiny(
            root / "decoder",
            hidden_size=options.hidden,
            intermediate_size=4 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.02,
        )
        recipe = load_recipe("xares-llm")
        rows = np.arange(len(source.n_frames))
        mixture = Mixture(
            [Source(source, rows, np.ones(len(rows), np.int64))],
            [1.0],
            batch_size=4,
            bucket=recipe.training.bucket,
            seed=1,
        )

        def example(draw: Draw, frames: np.ndarray) -> Example:
            return Example(frames, (6, 7), (2, 3, 4, 5), str(draw.row))

        reader = BatchReader(mixture, example, memory_bytes=1 << 30)
        steps = options.steps + WARM_UP
        kept = list(reader.steps(0, steps))

        def in_memory(first: int, last: int) -> Iterator[list[Example]]:
            yield from kept[first:last]

        def seconds(steps_of: object, number: int) -> tuple[float, list[float]]:
            """Seconds of the steps after the first ones, and the losses."""
            model = AudioLm(
                load_decoder(find_decoder(str(decoder)), device="cpu"), recipe, dim=source.dim, separator=None
            )
            plan = TrainPlan(steps, steps, recipe.optimiser, "fp32", recipe.training.frame_budget, 1e9, seed=1)
            ends: list[float] = []
            found = train(
                model,
                steps_of,  # type: ignore[arg-type]
                plan,
                root / f"training-{number}",
                identity=str(number),
                progress=lambda _: ends.append(time.perf_counter()),
            )
            return ends[-1] - ends[WARM_UP - 1], found.losses.tolist()

        ratios, number = [], 0
        for _ in range(options.repeats):
            stored, losses = seconds(reader.steps, number)
            memory, expected = seconds(in_memory, number + 1)
            assert losses == expected
            number += 2
            ratios.append(stored / memory)
            print(
                f"a step takes {1000 * stored / options.steps:.1f} ms, {1000 * memory / options.steps:.1f} ms",
                flush=True,
            )
        what = f"step of 4 clips of 10 s, {options.layers} layers of {options.hidden}, store over memory"
        peak = MemoryPeak()
        for _ in reader.steps(0, 2000 if options.mebibytes >= 1024 else 200):
            pass
        print(f"reading alone: {peak.mebibytes:.0f} MiB at most")
        show([Row(what, ratios, 1.10)])


if __name__ == "__main__":
    main()

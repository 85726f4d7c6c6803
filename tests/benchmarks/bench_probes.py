"""Speed and memory of the probes and metrics, as ratios to a baseline in the same process.

Run ``python tests/benchmarks/bench_probes.py [--quick]``. Baseline and probe alternate, so that other load on the
machine hits both; the median over the repeats is printed.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from xares_store.metrics.statistics import bootstrap_interval, paired_permutation_test
from xares_store.probes.knn import knn_predict, usable_cores
from xares_store.probes.mlp import MlpJob, MlpSettings, epoch_order, train_mlp
from xares_store.probes.schedule import epoch_learning_rate


def make_data(n: int, dim: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.integers(0, n_classes, n)
    centre = rng.standard_normal((n_classes, dim), dtype=np.float32) * 0.15
    return centre[target] + rng.standard_normal((n, dim), dtype=np.float32), target


def make_jobs(n: int, folds: int, seeds: int) -> list[MlpJob]:
    """Folds as the strict protocol makes them: test fold i, validation fold i + 1, train the rest."""
    fold = np.arange(n) % folds
    rows = [np.flatnonzero(fold == number) for number in range(folds)]
    jobs = []
    for number in range(folds):
        after = (number + 1) % folds
        train = np.flatnonzero((fold != number) & (fold != after))
        jobs += [MlpJob(str(number), train, rows[after], rows[number], seed) for seed in range(seeds)]
    return jobs


def plain_loop(
    x: torch.Tensor, y: torch.Tensor, n_classes: int, job: MlpJob, rate: float, options: MlpSettings
) -> None:
    """Train one probe as an ordinary in-memory loop."""
    torch.manual_seed(job.seed)
    net = torch.nn.Sequential(torch.nn.LayerNorm(x.shape[1]), torch.nn.Linear(x.shape[1], n_classes))
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    best = -1.0
    for epoch in range(1, options.epochs + 1):
        for group in optimiser.param_groups:
            group["lr"] = epoch_learning_rate(rate, epoch, options.epochs)
        order = torch.from_numpy(job.train[epoch_order(len(job.train), job.seed, epoch)])
        for rows in order.split(options.batch_size):
            loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            score = (net(x[job.valid]).argmax(-1) == y[job.valid]).double().mean().item()
        if score > best:
            best, kept = score, {key: value.clone() for key, value in net.state_dict().items()}
    net.load_state_dict(kept)
    with torch.no_grad():
        net(x[job.test]).softmax(-1).numpy()


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def median_ratio(
    call: Callable[[], object], baseline: Callable[[], object], repeats: int
) -> tuple[float, float, float]:
    """Median of (call / baseline) over alternating runs, after one run of each; and both medians in seconds."""
    baseline()
    call()
    pairs = [(seconds(call), seconds(baseline)) for _ in range(repeats)]
    ratio = statistics.median(one / other for one, other in pairs)
    return ratio, statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs)


def bench_mlp(
    n: int,
    dim: int,
    n_classes: int,
    seeds: int,
    rates: tuple[float, ...],
    repeats: int,
    epochs: int = 10,
    plain: int = 5,
) -> None:
    """Compare a stack with as many plain loops; only ``plain`` of these are run and scaled up."""
    features, target = make_data(n, dim, n_classes)
    x, y = torch.from_numpy(features), torch.from_numpy(target)
    jobs = make_jobs(n, 5, seeds)
    options = MlpSettings(epochs=epochs, learning_rates=rates)
    some = jobs[::seeds][:plain]
    models = len(jobs) * len(rates)
    ratio, stacked, loop = median_ratio(
        lambda: train_mlp(features, target, n_classes, jobs, options),
        lambda: [plain_loop(x, y, n_classes, job, rates[0], options) for job in some],
        repeats,
    )
    share = ratio * len(some) / models
    print(
        f"mlp  {n} x {dim}, {n_classes} classes: 5 folds x {seeds} seeds x {len(rates)} rates in {stacked:.3f} s, "
        f"{models} plain loops {loop * models / len(some):.3f} s, ratio {share:.3f}",
        flush=True,
    )


class MemoryPeak:
    """Largest growth of this process' resident memory inside the block, in MB."""

    def __enter__(self) -> MemoryPeak:
        self.megabytes = 0.0
        self._start, self._stop = self._resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.megabytes = max(self.megabytes, (self._resident() - self._start) / 1e6)

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def bench_knn(n_train: int, n_test: int, dim: int, repeats: int) -> None:
    features, target = make_data(n_train + n_test, dim, 50)
    train_idx, test_idx = np.arange(n_train), np.arange(n_train, n_train + n_test)
    train, test = torch.from_numpy(features[:n_train]), torch.from_numpy(features[n_train:])
    out = torch.empty(1000, n_train)

    def product() -> None:
        for rows in test.split(1000):
            torch.mm(rows, train.T, out=out[: len(rows)])

    def predict() -> None:
        knn_predict(features, target, 50, train_idx, test_idx)

    with MemoryPeak() as peak:
        predict()
    ratio, probe, bare = median_ratio(predict, product, repeats)
    print(
        f"knn  {n_train} x {n_test} x {dim}: {probe:.2f} s, bare matrix product {bare:.2f} s, ratio {ratio:.2f}, "
        f"extra memory {peak.megabytes:.0f} MB",
        flush=True,
    )


def bench_statistics(n: int) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, n)) < 0.7).astype(float)
    fold = np.arange(n) % 5
    print(
        f"stat {n} clips: bootstrap interval {seconds(lambda: bootstrap_interval(first)):.3f} s, by fold "
        f"{seconds(lambda: bootstrap_interval(first, strata=fold)):.3f} s, paired permutation test "
        f"{seconds(lambda: paired_permutation_test(first, second)):.3f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="skip the cases that take more than a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(usable_cores())
    bench_mlp(400, 512, 10, seeds=1, rates=(1e-3,), repeats=9)
    bench_mlp(400, 512, 10, seeds=5, rates=(1e-3,), repeats=9)
    bench_mlp(400, 512, 10, seeds=5, rates=(1e-4, 1e-3, 3e-3, 1e-2, 1e-1), repeats=3)
    bench_statistics(400)
    bench_statistics(200_000)
    if quick:
        bench_knn(10_000, 2_000, 768, repeats=3)
        return
    bench_mlp(2000, 768, 50, seeds=5, rates=(1e-3,), repeats=3, epochs=3, plain=2)
    bench_mlp(2000, 768, 50, seeds=5, rates=(1e-4, 1e-3, 3e-3, 1e-2, 1e-1), repeats=1, epochs=3, plain=2)
    bench_mlp(5000, 768, 1251, seeds=1, rates=(1e-3,), repeats=3, epochs=1, plain=2)
    bench_knn(50_000, 10_000, 768, repeats=3)


if __name__ == "__main__":
    main()

"""Phase one: run an encoder once over tasks' audio and keep frames, pooled vectors and clip rows in a store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from xares_store.audio.decode import Decoded, DecodePool
from xares_store.audio.headers import clip_lengths
from xares_store.audio.shards import Shard
from xares_store.audio.waveform import CropRule
from xares_store.clip import Failure
from xares_store.device import resolve_device, set_threads, usable_cores
from xares_store.encoders.encoder import Encoder, load_encoder
from xares_store.encoders.verify import verify_quick
from xares_store.errors import ConfigError, CorruptError, LabelError, XaresError
from xares_store.runs.budget import measure_budget
from xares_store.runs.feed import Ended, Feed, Item, Reused, Started
from xares_store.runs.plan import select_tasks
from xares_store.runs.progress import Meter
from xares_store.runs.provenance import versions
from xares_store.runs.shard_run import ShardRun, Work
from xares_store.runs.state import ShardState, batch_plan_path, expect_shards, read_json, state_now, states_of
from xares_store.store.files import write_once
from xares_store.store.store import Store
from xares_store.targets import read_target
from xares_store.task import Task

FRESH = ShardState(done=False, sequence=0, first_sample=0, sha256=None, dtype=frozenset(), failures=0)
Dtype: TypeAlias = Literal["float16", "float32"]
DTYPES = ("float16", "float32")
MAX_WORKERS = 512
MIN_WINDOW_S = 600.0
MAX_WINDOW_S = 2400.0
# On a CPU the encoder and the decoding processes take turns; only so many samples a process are under way when they
# change over. On an accelerator decoding runs ahead all the time.
SHORT_LOOKAHEAD = 2


@dataclass
class EmbedReport:
    """What one call of `embed` did.

    Attributes:
        encoder: address of the encoder in the store.
        clips: clips embedded now.
        parts: parts committed now.
        reused_shards: shards that were embedded before.
        failures: samples that could not become clips; they are recorded in the store too.
        bad_labels: (task, shard/key, message) of clips embedded now whose label does not fit the task: they are stored,
            but evaluating the task will refuse them.
        stored_failures: failures recorded by earlier calls in the shards reused now.
        broken: (task, shard, message) of shards that could not be read; nothing of them was committed.
        skipped_tasks: (task, reason) of shipped tasks without audio when no task was named, and of a suite's private tasks.
        batch_s: batch budget by task, in seconds of audio.
        oom_splits: how often a batch was halved because the accelerator ran out of memory.
        seconds, audio_s, encoder_s, decode_cpu_s: wall time, audio embedded, time inside the encoder, processor time
            spent on decoding and resampling, all in seconds.
    """

    encoder: str
    clips: int = 0
    parts: int = 0
    reused_shards: int = 0
    failures: list[Failure] = field(default_factory=list)
    bad_labels: list[tuple[str, str, str]] = field(default_factory=list)
    stored_failures: int = 0
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    skipped_tasks: list[tuple[str, str]] = field(default_factory=list)
    batch_s: dict[str, float] = field(default_factory=dict)
    oom_splits: int = 0
    seconds: float = 0.0
    audio_s: float = 0.0
    encoder_s: float = 0.0
    decode_cpu_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every sample met in this call became a clip with a label that fits its task."""
        return not (self.failures or self.broken or self.bad_labels)


class Interrupted(KeyboardInterrupt):
    """Embedding was interrupted; ``report`` says what is committed."""

    def __init__(self, report: EmbedReport) -> None:
        super().__init__("embedding was interrupted")
        self.report = report


def embed(
    encoder: str | Encoder,
    tasks: Sequence[str | Task] = (),
    *,
    store: str | Path,
    data: str | Path,
    device: str = "auto",
    workers: int | None = None,
    batch_seconds: float | None = None,
    dtype: Dtype = "float16",
    encoder_args: Mapping[str, str] | None = None,
    quiet: bool = True,
) -> EmbedReport:
    """Embed the audio of tasks into a store, doing only what is missing.

    Args:
        encoder: an encoder spec (file, module, built-in name, ``hf:org/model``) or a loaded encoder.
        tasks: task names, paths of task files, or tasks; empty means every shipped task whose audio is in ``data``.
        store: folder of the store; created when it does not exist.
        data: the data root, holding one folder of audio shards a task.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: decoding processes; None for one a usable core, 0 for none.
        batch_seconds: seconds of padded audio in a batch; None to measure it.
        dtype: ``float16`` (falls back to float32 for a part that would lose too much) or ``float32``.
        encoder_args: arguments for the encoder's constructor, as text.
        quiet: draw no progress bar.

    Returns:
        What was done. Samples that fail are in ``failures`` and in the store; they do not raise.

    Raises:
        XaresError: the data, the encoder or the store cannot be used at all.
        Interrupted: on Ctrl-C; everything committed stays and the same call resumes.

    Example:
        >>> report = embed("logmel", ["esc50"], store="my.store", data="xares_data")  # doctest: +SKIP
        >>> report.clips, report.ok                                                   # doctest: +SKIP
        (2000, True)
    """
    began = time.perf_counter()
    _validate(workers, batch_seconds, dtype)
    report = EmbedReport(encoder.address if isinstance(encoder, Encoder) else encoder)
    try:
        selected, report.skipped_tasks = select_tasks(tasks, Path(data))
        chosen_device = encoder.device if isinstance(encoder, Encoder) else resolve_device(device)
        set_threads()
        target = Store.open(store, create=True)
        target.sweep()
        total = sum(shard.path.stat().st_size for _, shards in selected for shard in shards)
        count = usable_cores() if workers is None else workers
        ahead = {"lookahead": max(1, SHORT_LOOKAHEAD * count)} if chosen_device == "cpu" else {}
        with DecodePool(count, **ahead) as pool:  # starts up while the encoder loads
            loaded = encoder
            if not isinstance(loaded, Encoder):
                loaded = load_encoder(loaded, args=encoder_args, device=chosen_device)
            verify_quick(loaded)
            target.put_encoder(loaded.address, loaded.record)
            report.encoder = loaded.address
            with Meter("embedding", total=total, quiet=quiet) as meter:
                for task, shards in selected:
                    _embed_task(target, loaded, task, shards, pool, meter, report, batch_seconds, dtype)
            report.decode_cpu_s = pool.cpu_seconds
    except KeyboardInterrupt:
        raise Interrupted(report) from None
    report.seconds = time.perf_counter() - began
    return report


def _validate(workers: int | None, batch_seconds: float | None, dtype: str) -> None:
    if dtype not in DTYPES:
        raise ConfigError(f'Stored frames are {" or ".join(DTYPES)}, not "{dtype}".', where="--dtype")
    if workers is not None and workers < 0:
        raise ConfigError(f"The number of decoding processes must be 0 or more, found {workers}.", where="--workers")
    if workers is not None and workers > MAX_WORKERS:
        raise ConfigError(f"At most {MAX_WORKERS} decoding processes are started, found {workers}.", where="--workers")
    if batch_seconds is not None and not batch_seconds > 0:
        raise ConfigError(f"A batch must hold more than 0 s of audio, found {batch_seconds}.", where="--batch-seconds")


def _embed_task(
    store: Store,
    encoder: Encoder,
    task: Task,
    shards: list[Shard],
    pool: DecodePool,
    meter: Meter,
    report: EmbedReport,
    batch_seconds: float | None,
    dtype: Dtype,
) -> None:
    address = task.audio_address
    store.put_task(task.address, task.to_toml())
    expect_shards(store, encoder.address, address, [(shard.split, shard.name) for shard in shards])
    states = states_of(store, encoder.address, address)
    todo = [(shard, states.get((shard.split, shard.name), FRESH)) for shard in shards]
    _refuse_other_dtype(todo, dtype)
    crop = CropRule(task.audio.crop_s, task.audio.tail, task.audio.min_tail_s)
    if any(not state.done for _, state in todo):
        budget_s, window_s = _batch_plan(store, encoder, address, todo, crop, batch_seconds)
    else:
        budget_s, window_s = 0.0, 0.0
    report.batch_s[task.name] = budget_s
    with ThreadPoolExecutor(1, thread_name_prefix="xares-commit") as commits:

        def now(shard: Shard) -> ShardState:
            return state_now(store, encoder.address, address, shard.split, shard.name)

        waiting = int(2 * max(window_s, MIN_WINDOW_S) * encoder.sample_rate_hz * 4)
        feed = Feed(shards, now, pool, rate_hz=encoder.sample_rate_hz, crop=crop, max_bytes=waiting)
        alone = feed.resting if encoder.device == "cpu" else nullcontext
        work = Work(store, encoder, address, budget_s, window_s, dtype, commits, alone, versions())
        with _counted(work, report):
            _consume(feed, work, task, meter, report)


def _refuse_other_dtype(todo: Sequence[tuple[Shard, ShardState]], dtype: str) -> None:
    for shard, state in todo:
        if dtype == "float32" and "float16" in state.dtype:
            raise ConfigError(
                "float32 frames were asked for, but this shard is stored as float16 already.",
                where=f"{shard.split}/{shard.name}",
                hint="Remove the embeddings with `xares store rm` first, or leave --dtype away to use them.",
            )


@contextmanager
def _counted(work: Work, report: EmbedReport) -> Iterator[None]:
    """Add what was counted to the report, also when the work is cut short."""
    try:
        yield
    finally:
        # Commits under way are small and whole: let them end, so that the report counts what is really there.
        try:
            work.settle()
        finally:
            report.clips += work.clips
            report.parts += work.parts
            report.failures += work.failures
            report.encoder_s += work.encoder_s
            report.audio_s += work.audio_s
            report.oom_splits += work.oom_splits


def _consume(feed: Feed, work: Work, task: Task, meter: Meter, report: EmbedReport) -> None:
    current: ShardRun | None = None
    left = 0  # bytes of the shard that no sample accounts for yet
    began = time.perf_counter()
    with closing(_Stopper(feed)):
        try:
            for event in feed:
                if isinstance(event, Started):
                    current = ShardRun(work, event.shard, event.state, event.digest.result)
                    left = event.shard.path.stat().st_size
                elif isinstance(event, Item):
                    assert current is not None
                    current.take(event.content)
                    _check_label(task, event.content, current, report)
                    left -= event.bytes
                    meter.advance(event.bytes, note=_note(task, work, began))
                elif isinstance(event, Ended):
                    assert current is not None
                    if current.empty:
                        current.abort()
                        place = f"{event.shard.split}/{event.shard.name}"
                        report.broken.append(
                            (task.name, place, f"The shard holds no audio.\n  where: {event.shard.path}")
                        )
                    else:
                        current.finish()
                    current = None
                    meter.advance(max(left, 0), note=_note(task, work, began))
                elif isinstance(event, Reused):
                    report.reused_shards += 1
                    report.stored_failures += event.failures
                    meter.advance(event.shard.path.stat().st_size, note=f"{task.name}: stored before")
                else:
                    if current is not None:
                        current.abort()
                        current = None
                    report.broken.append((task.name, f"{event.shard.split}/{event.shard.name}", str(event.error)))
        except BaseException:
            if current is not None:
                current.abort()
            raise


def _check_label(task: Task, content: list[Decoded] | Failure, run: ShardRun, report: EmbedReport) -> None:
    """Say now what evaluating would refuse later: labels are not needed for embedding, but corrected before it."""
    if isinstance(content, Failure):
        return
    clip = content[0].clip
    try:
        read_target(task, [clip.label], [clip.key])
    except LabelError as error:
        report.bad_labels.append((task.name, f"{run.shard.split}/{run.shard.name}/{clip.key}", error.message))


def _note(task: Task, work: Work, began: float) -> str:
    speed = work.audio_s / max(time.perf_counter() - began, 1e-9)
    return f"{task.name}: {work.clips} clips, {speed:.0f}x real time"


class _Stopper:
    """Lets ``closing`` end the feeding thread however the consumer ends."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def close(self) -> None:
        self._feed.stop()


def _batch_plan(
    store: Store,
    encoder: Encoder,
    audio_address: str,
    todo: Sequence[tuple[Shard, ShardState]],
    crop: CropRule,
    batch_seconds: float | None,
) -> tuple[float, float]:
    """Return batch budget and window in seconds: given, recorded by an earlier call, or measured now and recorded."""
    path = batch_plan_path(store, encoder.address, audio_address, encoder.device)
    recorded = read_json(path)
    if batch_seconds is None and recorded is not None:
        try:
            return float(recorded["batch_s"]), float(recorded["window_s"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(
                "The recorded batch budget cannot be read.", where=path, hint="Remove the file; it is measured again."
            ) from error
    trials: list[Any] = []
    if batch_seconds is None:
        pending = next(shard for shard, state in todo if not state.done)
        batch_seconds, trials = measure_budget(encoder, clip_s=_typical_clip_s(pending, crop))
    window_s = max(MIN_WINDOW_S, min(8 * batch_seconds, MAX_WINDOW_S))
    if trials:
        plan = {
            "batch_s": batch_seconds,
            "window_s": window_s,
            "device": encoder.device,
            "trials": [[trial.items, trial.batch_s, trial.cost] for trial in trials],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        if not write_once(path, (json.dumps(plan, indent=1) + "\n").encode()):
            return _batch_plan(store, encoder, audio_address, todo, crop, None)  # another process was quicker
    return batch_seconds, window_s


def _typical_clip_s(shard: Shard, crop: CropRule) -> float:
    """Return the median clip length of the first samples of a shard, in seconds; 5 s when none can be read."""
    lengths: list[float] = []
    try:
        for found in clip_lengths(shard, crop, limit=32):
            lengths += found or []
    except XaresError:
        pass  # a broken shard is reported when its turn comes; here only a typical length is wanted
    return sorted(lengths)[len(lengths) // 2] if lengths else 5.0

"""What an evaluation is asked to do: checked arguments, complete probe settings, and the identity of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from xares_store.errors import ConfigError, did_you_mean
from xares_store.fingerprint import fingerprint
from xares_store.kinds import PROBES_OF_KIND
from xares_store.measures import Frame, Knn, probe_settings
from xares_store.metrics.registry import metric_for
from xares_store.probes.probe import PROBES
from xares_store.protocol import PROTOCOLS
from xares_store.runs.llm.options import LlmOptions
from xares_store.task import Task

# Published tables used one rate for every task; a grid chosen on their validation = test would flatter.
PUBLISHED_RATES = (1e-3,)
_TRAINED = ("mlp", "frame", "retrieval", "llm")
BELONGS_TO: dict[str, tuple[str, ...]] = {
    "--lr": _TRAINED,
    "--epochs": _TRAINED,
    "--batch-size": _TRAINED,
    "--k": ("knn",),
    "--temperature": ("knn",),
    "--text-encoder": ("mlp", "retrieval"),  # mlp: the trained probe of any task
    "--tokenizer": ("mlp", "retrieval"),
}
MEMORY_BYTES = 1 << 30  # for the frames that are in memory at a time
FIRST_SEED = 42  # the seed of the published protocol; further seeds count up from it


@dataclass(frozen=True)
class Request:
    """What to evaluate with; None takes the task's own setting, no probes all that fit a task."""

    probes: tuple[str, ...]
    seeds: tuple[int, ...]
    protocol: str
    where: str | None
    device: str
    learning_rates: tuple[float, ...] | None
    epochs: int | None
    batch_size: int | None
    k: int | None
    temperature: float | None
    text_encoder: str | None = None
    tokenizer: str | None = None
    memory_bytes: int = MEMORY_BYTES
    llm: LlmOptions = field(default_factory=LlmOptions)

    def seeds_of(self, probe: str) -> tuple[int | None, ...]:
        """Return the seeds that a probe runs with: what was asked, else 5, 1 where a training takes hours, none for k-NN."""
        if not PROBES[probe].seeded:
            return (None,)
        return self.seeds or seeds_from(PROBES[probe].seeds)


def seeds_from(count: int) -> tuple[int, ...]:
    """Return so many seeds, counted up from the first."""
    return tuple(range(FIRST_SEED, FIRST_SEED + count))


def make_request(
    probes: Sequence[str],
    seeds: int | Sequence[int] | None,
    learning_rates: Sequence[float] | None,
    epochs: int | None,
    batch_size: int | None,
    k: int | None,
    temperature: float | None,
    where: str | None,
    protocol: str,
    device: str,
    text_encoder: str | None = None,
    tokenizer: str | None = None,
    memory_bytes: int = MEMORY_BYTES,
    llm: LlmOptions | None = None,
) -> Request:
    """Check the arguments of an evaluation.

    Raises:
        ConfigError: one of them cannot be used; named as the command line spells it.
    """
    for probe in probes:
        if probe not in PROBES:
            hint = did_you_mean(probe, PROBES, listing="There are: " + ", ".join(PROBES))
            raise ConfigError(f'No probe "{probe}".', where="--probe", hint=hint)
    if protocol not in PROTOCOLS:
        raise ConfigError(f'No protocol "{protocol}".', where="--protocol", hint="There are: " + ", ".join(PROTOCOLS))
    if seeds is None:
        numbers: tuple[int, ...] = ()
    else:
        numbers = seeds_from(seeds) if isinstance(seeds, int) else tuple(dict.fromkeys(seeds))
    if seeds is not None and (not numbers or min(numbers) < 0):
        raise ConfigError(f"At least one seed is needed, none below 0; found {seeds}.", where="--seeds")
    limits: list[tuple[str, Sequence[float] | None]] = [
        ("--lr", learning_rates),
        ("--epochs", None if epochs is None else [epochs]),
        ("--batch-size", None if batch_size is None else [batch_size]),
        ("--k", None if k is None else [k]),
        ("--temperature", None if temperature is None else [temperature]),
    ]
    for option, values in limits:
        if values is not None and not all(0 < value < float("inf") for value in values):
            raise ConfigError(f"Expected a number above 0, found {', '.join(map(str, values))}.", where=option)
    if memory_bytes < 1 << 20:
        raise ConfigError(f"Expected at least 1 MiB for frames, found {memory_bytes} bytes.", where="--memory")
    given = [option for option, values in limits if values is not None]
    given += ["--text-encoder"] * (text_encoder is not None) + ["--tokenizer"] * (tokenizer is not None)
    options = llm or LlmOptions()
    options.check()
    for option in [*given, *options.given()]:
        owners = BELONGS_TO.get(option, ("llm",))
        # A language model is trained only when it is asked for.
        if not set(owners) & set(probes) and (probes or owners == ("llm",)):
            raise ConfigError(
                f"This setting belongs to the probe {owners[0]}, which is not asked for.",
                where=option,
                hint=f"Leave it away, or add --probe {owners[0]}.",
            )
    rates = tuple(dict.fromkeys(float(rate) for rate in learning_rates)) if learning_rates else None
    return Request(
        probes=tuple(dict.fromkeys(probes)),
        seeds=numbers,
        protocol=protocol,
        where=where,
        device=device,
        learning_rates=rates,
        epochs=epochs,
        batch_size=batch_size,
        k=k,
        temperature=temperature,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        memory_bytes=memory_bytes,
        llm=options,
    )


def probes_for(task: Task, request: Request) -> tuple[str, ...]:
    """Return the probes that a task is evaluated with.

    ``mlp`` stands for the trained probe of the task's kind: the frame probe for events, the retrieval probe for
    captions. What does not fit the task's labels is left out. Without a wish all that fit are run, save a k-NN that the
    published tables do not have. A language model is trained only when it is asked for by name.
    """
    fitting = PROBES_OF_KIND[task.target.kind]
    if not request.probes:
        left_out = {"llm"} | ({"knn"} if task.published.knn is False else set())
        return tuple(probe for probe in fitting if probe not in left_out)
    trained = next((probe for probe in fitting if probe != "llm"), "mlp")
    wanted = (trained if probe == "mlp" else probe for probe in request.probes)
    return tuple(dict.fromkeys(probe for probe in wanted if probe in fitting))


def settings_for(task: Task, probe: str, request: Request) -> dict[str, Any]:
    """Return the probe's complete settings: part of the run's identity.

    Raises:
        ProbeError: the text side of the retrieval probe is not on this machine.
    """
    settings = plain_settings(task, probe, request)
    if probe == "retrieval":
        from xares_store.runs.retrieval import retrieval_settings

        settings |= retrieval_settings(task, request)
    return settings


def plain_settings(task: Task, probe: str, request: Request) -> dict[str, Any]:
    """Return the probe's settings without the files of its text side.

    Those of ``llm`` belong to a training, not to a task: see :mod:`xares_store.runs.llm.prepare`.
    """
    if probe == "llm":
        return {}
    own = probe_settings(task.probe, task.target.kind)[probe]
    if isinstance(own, Knn):
        return {
            "k": request.k or own.k,
            "temperature": request.temperature or own.temperature,
            "variant": "cosine" if request.protocol == "strict" else "published",
        }
    rates = own.learning_rates if request.protocol == "strict" else PUBLISHED_RATES
    settings: dict[str, Any] = {
        "epochs": request.epochs or own.epochs,
        "batch_size": request.batch_size or own.batch_size,
        "learning_rates": list(request.learning_rates or rates),
    }
    if isinstance(own, Frame):
        settings["positive_weight"] = own.positive_weight or 1.0
    return settings


def metric_versions(task: Task) -> str:
    """Return the versions of the task's metrics as one text: the main one's, and the others' by name."""
    others = [f"{name} {metric_for(name).version}" for name in task.metric.also or ()]
    return ", ".join([metric_for(task.metric.name).version, *others])


def run_name(
    encoder: str, task: Task, probe: str, request: Request, settings: dict[str, Any], seed: int | None, digest: str
) -> str:
    """Return the name of a run: equal embeddings, task, probe, metric, settings and seed give equal names."""
    identity = {
        "parts": digest,
        "encoder": encoder,
        "task": task.fingerprint,
        "probe": probe,
        "probe_version": PROBES[probe].version,
        "metric_version": metric_versions(task),
        "protocol": request.protocol,
        "settings": settings,
        "where": request.where,
        "seed": seed,
    }
    tail = "" if seed is None else f"-s{seed}"
    return f"{task.name}-{probe}-{request.protocol}{tail}-{fingerprint(identity)[:16]}"

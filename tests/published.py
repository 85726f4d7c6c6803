"""Small shards in the format in which X-ARES publishes each task: names, folders and the JSON beside the audio."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.toy import CLASSES, tone, write_tar

GOLDEN = Path(__file__).parent / "golden" / "xares_tasks.json"
FACTS: dict[str, dict[str, Any]] = {facts["id"]: facts for facts in json.loads(GOLDEN.read_text())["tasks"]}
RATE = 16000


def patterns(facts: dict[str, Any]) -> dict[str, str]:
    """Shard patterns of a task, each split that is a file of its own once."""
    splits: dict[str, str] = facts.get("folds") or facts["splits"]
    return {pattern: name for name, pattern in splits.items()}


def sidecar(facts: dict[str, Any], kind: int, index: int, seconds: float) -> Any:
    """The JSON of one clip that sounds like class ``kind``, as the publisher writes it."""
    key = facts["label_key"]
    if facts["kind"] == "single-label":
        return {key: facts["labels"][kind % len(facts["labels"])], "index": index}
    if facts["kind"] == "multi-label":
        return {key: ";".join(facts["labels"][label] for label in {kind, kind + 3, index % 5})}
    if facts["kind"] == "events":
        onset, offset, label = facts["event_keys"]
        return [{onset: 0.0, offset: seconds / 2, label: facts["labels"][kind]}]
    if facts["kind"] == "captions":
        return {
            f"caption_{n}": f"take {n} of a {CLASSES[kind]} in the {('yard', 'hall')[index % 2]}" for n in range(1, 6)
        }
    if facts["kind"] == "regression":
        return {key: float(2 + 3 * kind), "text": "WE CALL IT BEAR"}
    return {key: f"THIS IS A {CLASSES[kind].upper()}"}


def audio(kind: int, seconds: float, extension: str, rng: np.random.Generator) -> bytes:
    """One clip as a file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(CLASSES[kind], seconds, RATE, rng), RATE, format=extension.upper())
    return buffer.getvalue()


def make_shards(facts: dict[str, Any], folder: Path, *, clips: int = 12, seed: int = 0) -> list[Path]:
    """Write a shard for every pattern of a task; some clips are longer than the task's crop."""
    rng = np.random.default_rng(seed)
    shards = []
    for number, pattern in enumerate(patterns(facts)):
        members: list[tuple[str, bytes]] = []
        for index in range(clips):
            kind = index % len(CLASSES)
            crop = facts["crop_length_s"] or 1.0
            seconds = 1.2 * crop if crop <= 6 and index < 3 else 0.4 + 0.1 * (index % 3)
            key, extension = f"{facts['id']}_{number}_{index:04d}", ("wav", "flac")[index % 2]
            content = json.dumps(sidecar(facts, kind, index, seconds)).encode()
            members += [(f"{key}.{extension}", audio(kind, seconds, extension, rng)), (f"{key}.json", content)]
        shards.append(write_tar(folder / pattern.replace("*", "-000000"), members))
    return shards

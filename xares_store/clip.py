"""What a clip and a failed clip are: frozen values shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip (or one crop of a clip) as a store keeps it.

    Attributes:
        clip_id: unique inside a split. The sample key, or ``key#0000``, ``key#0001``, ... when the task crops.
        key: the sample key inside the audio shard (the recording).
        crop: 0-based index of the crop; 0 when the task does not crop.
        start_s: where the clip starts inside the recording, in seconds.
        duration_s: length of the clip in seconds, after decoding.
        label: the JSON object or list beside the audio, verbatim text as it came.
    """

    clip_id: str
    key: str
    crop: int
    start_s: float
    duration_s: float
    label: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not become a clip.

    Attributes:
        key: the sample key inside the audio shard.
        shard: name of the shard.
        kind: one word for counting: ``undecodable``, ``empty``, ``not-finite``, ``no-json``, ``bad-json``, ``no-audio``,
            ``encoder``, ``too-long``, ``worker``.
        reason: one sentence for people.
    """

    key: str
    shard: str
    kind: str
    reason: str

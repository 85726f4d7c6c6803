"""Tasks whose answers are texts: what their files may say together, and texts that cannot be used."""

from __future__ import annotations

import pytest

from xares_store.errors import LabelError, TaskError
from xares_store.measures import Metric
from xares_store.metrics.captioning import DATE_DELTA
from xares_store.targets import texts_of
from xares_store.task import Task

TRANSCRIPT = 'kind = "transcript"\nkey = "t"'
OPEN = 'kind = "text"\nkeys = ["t"]\nprompt = "Write."'
CLOSED = OPEN + "\nclosed = true"


def make(target: str, metric: str = 'name = "iwer"', audio: str = "") -> Task:
    return Task.from_text(
        f'format = 1\nname = "made"\ntitle = "Made"\ndomain = "speech"\n[data]\n'
        f'splits = {{ train = ["a.tar"], test = ["b.tar"] }}\n[audio]\n{audio}\n[target]\n{target}\n[metric]\n{metric}\n',
        where="made.toml",
        base=None,
    )


@pytest.mark.parametrize("target", [TRANSCRIPT, OPEN, OPEN + "\nclosed = false"])
def test_a_crop_does_not_learn_the_text_of_the_whole(target: str) -> None:
    make(target)
    with pytest.raises(TaskError, match=r"audio.crop_s: .*recipes crop in training, so leave audio.crop_s away"):
        make(target, audio="crop_s = 10.0")


def test_labels_are_those_of_each_crop() -> None:
    assert make(CLOSED, 'name = "string_accuracy"', "crop_s = 10.0").audio.crop_s == 10.0


@pytest.mark.parametrize("target", [TRANSCRIPT, OPEN, CLOSED])
def test_text_that_cannot_be_written_down_is_named(target: str) -> None:
    task = make(target)
    assert [one.test for one in texts_of(task, [r'{"t": "so \ud83d\ude00"}'], ["c1"])] == [("so \U0001f600",)]
    with pytest.raises(LabelError) as caught:
        texts_of(task, ['{"t": "fine"}', r'{"t": "so \ud83d"}'], ["c1", "c2"])
    for part in ("place 3", r"\ud83d", "clip c2", '"t"', "task made"):
        assert part in str(caught.value)
    str(caught.value).encode()


def test_the_kind_of_captions_belongs_to_date() -> None:
    date = 'name = "date"\n'
    assert make(OPEN, date).metric.date_kind is None
    for kind in DATE_DELTA:
        assert make(OPEN, date + f'date_kind = "{kind}"').metric.date_kind == kind
    assert make(OPEN, f'name = "fense"\nalso = ["date"]\ndate_kind = "{kind}"').metric.date_kind == kind
    with pytest.raises(TaskError, match=r"metric.date_kind: .*'loud'"):
        make(OPEN, date + 'date_kind = "loud"')
    with pytest.raises(TaskError, match=r"metric.date_kind belongs to date"):
        make(OPEN, 'name = "fense"\ndate_kind = "short"')
    assert make(OPEN, date).fingerprint != make(OPEN, date + 'date_kind = "short"').fingerprint
    assert Metric(name="date").model_dump(exclude_none=True) == {"name": "date"}

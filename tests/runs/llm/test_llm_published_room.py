"""The room that texts leave for audio is that of the protocol's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.runs.llm.material import make_anew
from xares_store.runs.evaluate import evaluate
from xares_store.runs.llm import training
from xares_store.runs.llm.options import LlmOptions


class _Seen(Exception):
    """What was looked for was found."""


def test_a_training_knows_whether_its_layout_has_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make_anew(tmp_path)
    found: list[bool] = []

    def course(*_: Any, gaps: bool) -> None:
        found.append(gaps)
        raise _Seen

    monkeypatch.setattr(training, "make_course", course)
    for protocol in ("strict", "published"):
        with pytest.raises(_Seen):
            evaluate(llm.store, tasks=[str(llm.spelling)], probes=["llm"], protocol=protocol, llm=LlmOptions(recipe=str(llm.alone)))  # fmt: skip
    assert found == [False, True]

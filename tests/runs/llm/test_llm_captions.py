"""Captions of a kind are scored with the band of that kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.runs.llm.made import make_features, make_task, rows
from tests.text_models import save_text_model
from xares_store.metrics.captioning import DATE_DELTA
from xares_store.probes.captions import CaptionModels
from xares_store.protocol import Fold
from xares_store.runs.llm.text_scores import score_texts
from xares_store.targets import Texts

OPEN = 'kind = "text"\nkeys = ["t"]\nprompt = "Write."'


@pytest.mark.parametrize("kind", [None, "short", "music"])
def test_the_kind_of_captions_chooses_the_band_of_date(tmp_path: Path, kind: str | None) -> None:
    models = CaptionModels.find(str(save_text_model(tmp_path / "small")), "none")
    task = make_task("date", target=OPEN, more=f'date_kind = "{kind}"' if kind else "")
    features = make_features([Texts(("x",), (text,)) for text in ("a dog barks", "rain falls")], [Fold("test", rows(), rows(), rows(0, 1))])  # fmt: skip
    found = score_texts(task, features, [["a dog", "the rain"]], protocol="strict", captions=models)
    folds: dict[str, list[dict[str, Any]]] = found.details["text"]["captions"]["folds"]
    assert [one["delta"] for one in folds[str(found.main_metric)]] == [DATE_DELTA[kind or "long"]]  # type: ignore[index]

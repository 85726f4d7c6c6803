"""The parts of the probe vectors that no probe has a test of its own for; and every vector is used somewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.toy import Toy
from xares_store.probes.stack import parameter_count
from xares_store.probes.swiglu import SwiGlu
from xares_store.runs.embed import embed
from xares_store.store.store import Store

TESTS = Path(__file__).parents[1]
PROBES: dict[str, Any] = json.loads((TESTS / "golden" / "probes.json").read_text())
FRAMES: dict[str, Any] = json.loads((TESTS / "golden" / "frames.json").read_text())


@pytest.mark.parametrize(("file", "vectors"), [("probes.json", PROBES), ("frames.json", FRAMES)])
def test_every_vector_is_named_in_a_test(file: str, vectors: dict[str, Any]) -> None:
    texts = [path.read_text() for path in TESTS.rglob("test_*.py")]
    users = [text for text in texts if file in text]
    assert vectors
    for name in vectors:
        assert any(f'"{name}"' in text for text in users), name


@pytest.mark.parametrize("case", PROBES["linear_probe_params"], ids=str)
def test_a_probe_has_as_many_parameters_as_the_published_one(case: dict[str, Any]) -> None:
    outputs = case["in"] if case["out"] is None else case["out"]  # without outputs of its own it maps onto itself
    assert parameter_count(case["in"], outputs) == case["expected"]


@pytest.mark.parametrize("case", PROBES["swiglu_adapter_params"]["cases"], ids=str)
def test_an_adapter_has_as_many_parameters_as_the_published_one(case: dict[str, Any]) -> None:
    with torch.device("meta"):
        adapter = SwiGlu(case["D"], case["I"], case["H"])
    assert sum(value.numel() for value in adapter.parameters()) == case["expected"]


def test_an_adapter_computes_what_the_published_one_does() -> None:
    case = PROBES["swiglu_forward"]
    state = {name: torch.tensor(value) for name, value in case["state"].items()}
    hidden, inner = state["proj.weight"].shape
    adapter = SwiGlu(state["fc_1.weight"].shape[1], inner, hidden)
    adapter.load_state_dict(state)
    with torch.no_grad():
        found = adapter(torch.tensor(case["input"]))
    np.testing.assert_allclose(found.numpy(), case["expected"], rtol=1e-4, atol=1e-6)


def test_a_mean_is_over_the_clips_own_frames_and_the_batch_leaves_no_trace(make_toy: Any, tmp_path: Path) -> None:
    """`masked_mean`, and `encode_batch_padding`: lengths of a batch are kept, where the published code drops them."""
    case = PROBES["masked_mean"]
    frames = np.swapaxes(np.asarray(case["x_BDT"]), 1, 2)  # (clips, frames, dim)
    for clip, length, expected in zip(frames, case["lengths"], case["expected"], strict=True):
        np.testing.assert_allclose(clip[:length].mean(axis=0), expected)
    padding = FRAMES["encode_batch_padding"]
    assert padding["padded_batch_shape"] == [len(padding["wave_lengths"]), max(padding["wave_lengths"])]
    toy: Toy = make_toy(folds=3, per_fold=4, seconds=(0.2, 0.9))
    embed("logmel", [str(toy.task)], store=tmp_path / "s", data=toy.root, device="cpu", workers=0, batch_seconds=60)
    store = Store.open(tmp_path / "s")
    clips = store.clips().to_pylist()
    assert len({clip["n_frames"] for clip in clips}) > 3, "clips of different lengths, in one batch"
    values, rows = store.pooled("logmel", clips[0]["task"])
    for vector, row in zip(values, rows.to_pylist(), strict=True):
        own = store.frames(row["clip_id"], split=row["split"])
        assert len(own) == row["n_frames"]
        assert abs(row["n_frames"] - row["duration_s"] / 0.01) <= 2
        np.testing.assert_allclose(vector, own.astype(np.float64).mean(axis=0), rtol=2e-3, atol=2e-3)

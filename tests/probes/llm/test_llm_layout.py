"""Where things stand in the decoder's sequence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.probes.llm.layout import IGNORE, arrange
from xares_store.probes.llm.projector import combine, combined_length

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "llm_probes.json").read_text())


def _ids(texts: list[str], tokens: dict[str, int]) -> list[list[int]]:
    return [[tokens[word] for word in text.split()] for text in texts]


def test_published_speech_recognition_layout() -> None:
    case = GOLDEN["asr_llm_labels"]
    answers = _ids(case["texts"], case["tokens"])
    layout = arrange(case["audio_lengths"], [(), ()], answers, end=0, separator=1, gaps=True)
    assert layout.attention.tolist() == case["expected_attention_mask"]
    assert layout.labels.tolist() == case["expected_labels"]
    written = arrange(case["audio_lengths"], [(), ()], None, end=0, separator=1, gaps=True)
    assert written.attention.tolist() == case["generation_attention_mask_with_separator_only"]


def test_number_of_learnt_tokens() -> None:
    case = GOLDEN["asr_llm_labels"]
    for gaps in (True, False):
        layout = arrange([4, 2], [(), ()], _ids(case["texts"], case["tokens"]), end=0, separator=1, gaps=gaps)
        assert int((layout.labels != IGNORE).sum()) == GOLDEN["asr_llm_loss_check"]["number_of_supervised_tokens"]


def test_published_joint_layout() -> None:
    case = GOLDEN["xares_llm_inputs"]
    layout = arrange([4, 2], [(6, 7), (6, 7)], [(2, 3), (5,)], end=0, gaps=True)
    assert layout.attention.tolist() == case["expected_attention"]
    assert layout.labels.tolist() == case["expected_labels"]
    assert layout.ids[layout.text].tolist() == [6, 7, 2, 3, 0, 6, 7, 5, 0]


def test_published_positions_differ_between_training_and_generation() -> None:
    case = GOLDEN["position_ids"]
    training = arrange([4, 2], [(6, 7), (6, 7)], [(2, 3), (5,)], end=0, gaps=True)
    assert [training.positions[1].tolist()] == case["training_forward"]
    writing = arrange([4, 2], [(6, 7), (6, 7)], None, end=0, gaps=True)
    assert writing.positions.tolist() == case["generation_first_step"]


_CLIP = st.tuples(
    st.integers(1, 9), st.lists(st.integers(2, 9), max_size=3), st.lists(st.integers(2, 9), min_size=1, max_size=4)
)


@settings(deadline=None)
@given(clips=st.lists(_CLIP, min_size=1, max_size=5), separator=st.sampled_from([None, 1]))
def test_strict_layout_of_a_clip_does_not_depend_on_its_batch(clips: list[Any], separator: int | None) -> None:
    audio, context, answer = zip(*clips, strict=True)
    layout = arrange(audio, context, answer, end=0, separator=separator)
    prefix = arrange(audio, context, None, end=0, separator=separator)
    start = 0
    for row, (n, prompt, text) in enumerate(clips):
        real = layout.attention[row].bool()
        count = int(real.sum())
        assert count == n + (separator is not None) + len(prompt) + len(text) + 1
        assert layout.positions[row][real].tolist() == list(range(count))
        head = [] if separator is None else [separator]
        assert layout.ids[row][layout.text[row]].tolist() == [*head, *prompt, *text, 0]
        labels = [*head, *[IGNORE] * len(prompt), *text, 0]
        assert layout.labels[row][real].tolist() == [IGNORE] * n + labels
        # Audio stands first, and every label and the place that predicts it are among the kept ones.
        places = layout.audio[start : start + n] - row * layout.ids.shape[1]
        assert places.tolist() == torch.nonzero(real).flatten()[:n].tolist()
        learnt = torch.nonzero(layout.labels[row] != IGNORE).flatten()
        assert int(learnt.min()) >= layout.ids.shape[1] - layout.keep + 1
        # The places before the answer are numbered as in generation.
        before = prefix.positions[row][prefix.attention[row].bool()].tolist()
        assert before == layout.positions[row][real].tolist()[: len(before)]
        start += n


@pytest.mark.parametrize("how", ["stack", "mean"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 9])
def test_combined_frames(how: str, n: int) -> None:
    frames = np.random.default_rng(n).normal(size=(n, 5)).astype(np.float32)
    found = combine(frames, 3, how)
    assert len(found) == combined_length(n, 3)
    for row, one in enumerate(found):
        group = frames[row * 3 : row * 3 + 3]
        if how == "mean":
            np.testing.assert_allclose(one, group.mean(axis=0), rtol=1e-6)
        else:
            filled = np.concatenate([group, np.repeat(group[-1:], 3 - len(group), axis=0)])
            np.testing.assert_array_equal(one, filled.ravel())

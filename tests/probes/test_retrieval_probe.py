"""The retrieval probe: golden losses, equality with a plain training loop, learning, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.errors import ProbeError
from xares_store.metrics.retrieval import retrieval_ranks
from xares_store.probes import towers
from xares_store.probes.mlp import epoch_order
from xares_store.probes.retrieval import (
    RetrievalJob,
    RetrievalSettings,
    multi_positive_loss,
    places,
    published_loss,
    train_retrieval,
)
from xares_store.probes.schedule import epoch_learning_rate
from xares_store.probes.text import TextVectors, TokenBags
from xares_store.probes.towers import initial_state, parameter_count

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "probes.json").read_text())
CASES = GOLDEN["contrastive_loss"]["cases"]


@pytest.fixture
def narrow(monkeypatch):
    """Towers of width 64: the same arithmetic in a moment."""
    monkeypatch.setattr(towers, "WIDTH", 64)


def recall(audio, text, clip):
    return retrieval_ranks(audio, text, clip).recall_at(1)


def make_data(n=60, captions=2, dim=12, vocabulary=40, seed=0):
    """Random clips and captions: nothing to learn, everything to compute."""
    rng = np.random.default_rng(seed)
    bags = TokenBags.of([rng.integers(0, vocabulary, rng.integers(1, 7)) for _ in range(n * captions)], vocabulary)
    third = np.array_split(np.arange(n), 3)
    return rng.normal(size=(n, dim)).astype(np.float32), bags, np.repeat(np.arange(n), captions), third


def test_there_are_golden_losses():
    assert len(CASES) == 6


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_published_loss_and_gradients_match_the_golden_vectors(case):
    audio, text = (torch.tensor(case[key], dtype=torch.float64, requires_grad=True) for key in ("audio", "text"))
    temperature = case["kwargs"].get("temperature", towers.INITIAL_TEMPERATURE)
    log_scale = torch.tensor(math.log(1 / temperature), dtype=torch.float64, requires_grad=True)
    loss = published_loss(audio, text, log_scale, regularise=case["kwargs"].get("embed_regularization", True))
    loss.backward()
    assert loss.item() == pytest.approx(case["expected_loss"], abs=1e-9)
    assert log_scale.grad.item() == pytest.approx(case["grad_log_scale"], abs=1e-9)
    np.testing.assert_allclose(audio.grad.numpy(), case["grad_audio"], atol=1e-9)
    np.testing.assert_allclose(text.grad.numpy(), case["grad_text"], atol=1e-9)


def test_the_scale_starts_where_the_published_one_does():
    state = initial_state(4, TokenBags.of([[0]], 1), None, 0)
    assert state["log_scale"].item() == pytest.approx(GOLDEN["contrastive_loss"]["log_scale_init"], abs=1e-6)


@pytest.mark.parametrize(("dim", "vocabulary", "expected"), [(768, 30522, 35_192_321), (512, 1000, 4_699_137)])
def test_parameter_count_is_that_of_the_state(dim, vocabulary, expected):
    assert parameter_count(dim, vocabulary=vocabulary) == expected
    if vocabulary == 1000:
        state = initial_state(dim, TokenBags.of([[0]], vocabulary), None, 0)
        assert sum(value.numel() for value in state.values()) == expected


def test_parameter_count_with_sentence_vectors_is_that_of_the_state():
    state = initial_state(32, TextVectors(np.zeros((1, 24), np.float32)), None, 0)
    assert sum(value.numel() for value in state.values()) == parameter_count(32, text_dim=24)


def test_multi_positive_loss_is_the_symmetric_cross_entropy_when_every_clip_has_one_caption():
    audio, text = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(2.0, dtype=torch.float64)
    logits = scale.exp() * F.normalize(audio, dim=1) @ F.normalize(text, dim=1).T
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(multi_positive_loss(audio, text, target, scale), expected)


def test_multi_positive_loss_by_its_formula():
    audio = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    text = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 5.0]], dtype=torch.float64)
    half = math.sqrt(0.5)
    rows = np.array([[1, half, 0], [0, half, 1]])  # cosines; clip 0 has captions 0 and 1
    to_text = np.log(np.exp(rows).sum(axis=1)) - [(1 + half) / 2, 1]
    columns = np.log(np.exp(rows).sum(axis=0)) - [1, half, 1]
    found = multi_positive_loss(audio, text, torch.tensor([0, 0, 1]), torch.tensor(0.0, dtype=torch.float64))
    assert found.item() == pytest.approx((to_text.mean() + columns.mean()) / 2)


@given(st.floats(0.1, 10), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_multi_positive_loss_ignores_the_length_of_embeddings(factor, seed):
    generator = torch.Generator().manual_seed(seed)
    audio, text = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    clip, scale = torch.tensor([0, 1, 2, 3]), torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(
        multi_positive_loss(audio * factor, text / factor, clip, scale), multi_positive_loss(audio, text, clip, scale)
    )


class Plain(torch.nn.Module):
    """What a reader would write first: the whole table, every token through the whole tower, a mean."""

    def __init__(self, state, vocabulary):
        super().__init__()
        dim = state["audio.ln.weight"].shape[0]
        self.ln = torch.nn.LayerNorm(dim)
        self.audio = torch.nn.Sequential(torch.nn.Linear(dim, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
        self.table = torch.nn.Embedding(vocabulary, 64)
        self.text = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
        self.log_scale = torch.nn.Parameter(state["log_scale"].clone())
        names = {"ln": "audio.ln", "audio.0": "audio.fc1", "audio.2": "audio.fc2", "table": "text.table"}
        names |= {"text.0": "text.fc1", "text.2": "text.fc2"}
        own = dict(self.named_parameters())
        with torch.no_grad():
            for mine, theirs in names.items():
                for part in ("weight", "bias"):
                    if f"{theirs}.{part}" in state:
                        own[f"{mine}.{part}"].copy_(state[f"{theirs}.{part}"])
            self.table.weight.copy_(state["text.table"])

    def forward(self, x, captions):
        text = torch.stack([self.text(self.table(torch.as_tensor(tokens))).mean(0) for tokens in captions])
        return self.audio(self.ln(x)), text


@pytest.mark.parametrize("loss", ["published", "multi-positive"])
@pytest.mark.usefixtures("narrow")
def test_training_equals_a_plain_loop_over_the_whole_table(loss):
    features, bags, clip, (train, valid, test) = make_data(n=24)
    job = RetrievalJob("1", train, valid, test, seed=3)
    options = RetrievalSettings(epochs=3, batch_size=6, learning_rates=(2e-3,), loss=loss)
    plain = Plain(initial_state(12, bags, None, 3), 40)
    before = plain.table.weight.detach().clone()
    optimiser = torch.optim.Adam(plain.parameters(), lr=2e-3)
    tokens = [bags.take(np.array([row]))[0] for row in range(len(clip))]
    pairs = np.flatnonzero(np.isin(clip, train))
    scores, states, losses = [], [], []
    for epoch in range(1, 4):
        optimiser.param_groups[0]["lr"] = epoch_learning_rate(2e-3, epoch, 3)
        order, total = pairs[epoch_order(len(pairs), 3, epoch)], 0.0
        for first in range(0, len(order), 6):
            batch = order[first : first + 6]
            audio, text = plain(torch.from_numpy(features[clip[batch]]), [tokens[row] for row in batch])
            if loss == "published":
                value = published_loss(audio, text, plain.log_scale)
            else:
                distinct, member = np.unique(clip[batch], return_inverse=True)
                rows = torch.from_numpy(np.array([list(clip[batch]).index(one) for one in distinct]))
                value = multi_positive_loss(audio[rows], text, torch.from_numpy(member), plain.log_scale)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            total += value.item() * len(batch)
        losses.append(total / len(order))
        with torch.no_grad():
            rows = np.flatnonzero(np.isin(clip, valid))
            audio, text = plain(torch.from_numpy(features[valid]), [tokens[row] for row in rows])
        scores.append(recall(audio.numpy(), text.numpy(), places(valid, clip[rows])))
        states.append({key: value.clone() for key, value in plain.state_dict().items()})
    result = train_retrieval(features, bags, clip, job, options, score=recall)
    assert result.history[0]["train_loss"] == pytest.approx(losses, rel=1e-4)
    assert result.best_epoch == int(np.argmax(scores)) + 1
    assert result.valid_score == pytest.approx(max(scores))
    kept = states[result.best_epoch - 1]
    ids = result.state["text.token_ids"]
    used = np.unique(bags.token)
    assert sorted(ids.tolist()) == used.tolist()
    mine = {"text.table": kept["table.weight"][ids], "text.fc1.weight": kept["text.0.weight"]}
    mine |= {"audio.fc2.weight": kept["audio.2.weight"], "audio.ln.weight": kept["ln.weight"]}
    for name, value in mine.items():
        # Adam turns a gradient of rounding size into a full step: a few weights may differ, the bulk may not.
        assert np.isclose(result.state[name], value.numpy(), rtol=1e-3, atol=2e-4).mean() > 0.999, name
    # Tokens of no training caption have not moved by a bit, in the plain loop just as here.
    trained = np.unique(bags.take(np.flatnonzero(np.isin(clip, train)))[0])
    untrained = np.setdiff1d(np.arange(40), trained)
    assert len(np.intersect1d(untrained, ids))
    assert torch.equal(kept["table.weight"][untrained], before[untrained])
    still = np.isin(ids, untrained)
    assert np.array_equal(result.state["text.table"][still], before[ids[still]].numpy())


@pytest.mark.usefixtures("narrow")
def test_initial_rows_do_not_depend_on_which_tokens_are_asked_for(monkeypatch):
    monkeypatch.setattr(towers, "_BLOCK_ROWS", 7)
    bags = TokenBags.of([[0]], 30)
    whole, some = (initial_state(4, bags, ids, 5)["text.table"] for ids in (None, np.array([20, 3, 29])))
    assert torch.equal(whole[[20, 3, 29]], some)
    assert len(torch.unique(whole)) > 30 * 60


def attributes(n, seed=0, captions=3, dim=24):
    """Clips with four attributes in their vectors, and captions that name them in any order among filler words."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, size=(n, 4))
    codes = rng.normal(size=(4, 6, dim))
    x = sum(codes[which, values[:, which]] for which in range(4)) + rng.normal(size=(n, dim)) * 0.1
    texts = []
    for row in values:
        for _ in range(captions):
            words = [which * 6 + value for which, value in enumerate(row)] + rng.integers(24, 40, 3).tolist()
            texts.append(rng.permutation(words).tolist())
    return x.astype(np.float32), texts, np.repeat(np.arange(n), captions)


@pytest.mark.parametrize("loss", ["published", "multi-positive"])
@pytest.mark.usefixtures("narrow")
def test_it_learns_which_caption_belongs_to_a_clip_never_seen(loss):
    x, texts, clip = attributes(240)
    job = RetrievalJob("1", np.arange(160), np.arange(160, 200), np.arange(200, 240), seed=1)
    options = RetrievalSettings(epochs=8, batch_size=64, learning_rates=(3e-3,), loss=loss)

    def run(texts):
        result = train_retrieval(x, TokenBags.of(texts, 40), clip, job, options, score=recall)
        return retrieval_ranks(result.audio, result.text, places(job.test, clip[result.captions])).recall_at(10)

    shuffled = [texts[row] for row in np.random.default_rng(0).permutation(len(texts))]
    assert run(texts) > 0.9
    assert run(shuffled) < 0.45  # by chance 0.24: one of 3 captions in ten of 120, or a clip in ten of 40


@pytest.mark.usefixtures("narrow")
def test_it_learns_from_sentence_vectors():
    x, texts, clip = attributes(240)
    vectors = np.zeros((len(texts), 40), np.float32)
    for row, tokens in enumerate(texts):
        vectors[row, tokens] = 1
    job = RetrievalJob("1", np.arange(160), np.arange(160, 200), np.arange(200, 240), seed=1)
    options = RetrievalSettings(epochs=8, batch_size=64, learning_rates=(3e-3,))
    result = train_retrieval(x, TextVectors(vectors), clip, job, options, score=recall)
    assert retrieval_ranks(result.audio, result.text, places(job.test, clip[result.captions])).recall_at(10) > 0.9
    assert "text.table" not in result.state
    assert result.state["text.ln.weight"].shape == (40,)


@pytest.mark.usefixtures("narrow")
def test_checkpoint_and_rate_are_the_first_of_the_best():
    features, bags, clip, (train, valid, test) = make_data()
    job = RetrievalJob("1", train, valid, test, seed=0)
    script = iter([0.1, 0.5, 0.5, math.nan, 0.5, 0.5])
    seen = []
    options = RetrievalSettings(epochs=3, batch_size=20, learning_rates=(1e-3, 1e-4))
    result = train_retrieval(
        features,
        bags,
        clip,
        job,
        options,
        score=lambda *_: next(script),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (result.learning_rate, result.best_epoch, result.valid_score) == (1e-3, 2, 0.5)
    assert [row["valid"] for row in result.history] == [[0.1, 0.5, 0.5], [None, 0.5, 0.5]]
    assert seen == [(done, 6) for done in range(1, 7)]


@pytest.mark.usefixtures("narrow")
def test_a_seed_decides_everything_and_embeddings_have_length_one():
    features, bags, clip, (train, valid, test) = make_data()
    options = RetrievalSettings(epochs=1, batch_size=16)
    first, again, other = (
        train_retrieval(features, bags, clip, RetrievalJob("1", train, valid, test, seed), options, score=recall)
        for seed in (4, 4, 5)
    )
    assert np.array_equal(first.text, again.text)
    assert not np.allclose(first.text, other.text)
    np.testing.assert_allclose(np.linalg.norm(first.audio, axis=1), 1, rtol=1e-5)
    assert first.audio.shape == (20, 64)
    assert first.text.shape == (40, 64)


@pytest.mark.usefixtures("narrow")
def test_given_weights_are_the_start():
    features, bags, clip, (train, valid, test) = make_data()
    options = RetrievalSettings(epochs=1, batch_size=16)
    init = {name: value.numpy() for name, value in initial_state(12, bags, None, 8).items()}
    job = RetrievalJob("1", train, valid, test, seed=8)
    seeded = train_retrieval(features, bags, clip, job, options, score=recall)
    given_ = train_retrieval(features, bags, clip, job, options, score=recall, init=init)
    assert np.array_equal(seeded.text, given_.text)


@pytest.mark.usefixtures("narrow")
def test_large_sets_are_embedded_in_blocks(monkeypatch):
    features, bags, clip, (train, valid, test) = make_data()
    job, options = RetrievalJob("1", train, valid, test, 0), RetrievalSettings(epochs=1, batch_size=16)
    whole = train_retrieval(features, bags, clip, job, options, score=recall)
    monkeypatch.setattr(towers, "_BLOCK_EVALUATED", 3)
    blocks = train_retrieval(features, bags, clip, job, options, score=recall)
    np.testing.assert_allclose(whole.text, blocks.text, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_the_device_changes_rounding_alone():
    features, bags, clip, (train, valid, test) = make_data()
    job, options = RetrievalJob("1", train, valid, test, 0), RetrievalSettings(epochs=1, batch_size=16)
    here, there = (
        train_retrieval(features, bags, clip, job, options, score=recall, device=device) for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(here.text, there.text, atol=1e-2)
    np.testing.assert_allclose(here.history[0]["train_loss"], there.history[0]["train_loss"], rtol=1e-2)


@pytest.mark.usefixtures("narrow")
def test_divergence_is_an_error_that_names_fold_and_rates():
    features, bags, clip, (train, valid, test) = make_data()
    job, options = RetrievalJob("f", train, valid, test, 0), RetrievalSettings(epochs=1, learning_rates=(1e30,))
    with pytest.raises(ProbeError, match=r"(?s)diverged.*1e\+30.*fold f, seed 0"):
        train_retrieval(features, bags, clip, job, options, score=recall)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": np.zeros((60, 12))}, "float32"),
        ({"clip": np.zeros(3, np.int64)}, "int64 clip for each of the 120 captions"),
        ({"clip": np.full(120, 60)}, "captions of the clips 0 to 59"),
        ({"clip": np.zeros(120, np.int64)}, "at least one caption for every clip"),
        ({"valid": np.array([], np.int64)}, "found none in valid"),
        ({"test": np.array([60])}, "rows 0 to 59 in test"),
        ({"audio": np.full((60, 12), np.nan, np.float32)}, "NaN or Inf"),
    ],
)
def test_unusable_input_is_named(change, message):
    features, bags, clip, (train, valid, test) = make_data()
    job = RetrievalJob("1", train, valid, test, 0)
    job = replace(job, **{name: value for name, value in change.items() if name in ("valid", "test")})
    with pytest.raises(ProbeError, match=message):
        train_retrieval(
            change.get("audio", features),
            bags,
            change.get("clip", clip),
            job,
            RetrievalSettings(epochs=1),
            score=recall,
        )


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rates": ()}, {"learning_rates": (1e-3, 1e-3)}, {"loss": "other"}],
)
def test_unusable_settings_are_refused(options):
    with pytest.raises(ProbeError):
        RetrievalSettings(**options)

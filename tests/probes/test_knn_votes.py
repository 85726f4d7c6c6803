"""The k-NN probe against the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xares_store.errors import ProbeError
from xares_store.probes.knn import knn_predict, neighbours

CASES = json.loads((Path(__file__).parents[1] / "golden" / "knn.json").read_text())["cases"]
assert len(CASES) == 11


def predict(case, variant):
    train = np.array(case["train"], dtype=np.float32)
    features = np.concatenate([train, np.array(case["queries"], dtype=np.float32)])
    labels = np.array(case["train_labels"])
    pad = np.zeros((len(features) - len(train), *labels.shape[1:]), dtype=labels.dtype)
    rows = np.arange(len(features))
    return knn_predict(
        features,
        np.concatenate([labels, pad]),
        case["num_classes"],
        rows[: len(train)],
        rows[len(train) :],
        k=case["k"],
        temperature=case["temperature"],
        variant=variant,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize(("variant", "key"), [("cosine", "row_normalised"), ("published", "compat")])
def test_golden(case, variant, key):
    if case["name"] == "k_larger_than_n":  # the reference raises; all clips vote instead
        assert neighbours(len(case["train"]), case["k"]) == 6
        smaller = {**case, "k": 6}
        np.testing.assert_array_equal(predict(case, variant), predict(smaller, variant))
        return
    if case["name"] in ("label_minus_one", "multi_label_matrix"):  # the latter has no meaning: refused
        with pytest.raises(ProbeError):
            predict(case, variant)
        return
    found = predict(case, variant)
    np.testing.assert_allclose(found, case[f"{key}_scores"]["value"], rtol=2e-6, atol=2e-6)
    assert found.argmax(axis=1).tolist() == case[f"{key}_argmax"]

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields

import pytest

from xares_store.errors import ProbeError
from xares_store.probes import knn, mlp
from xares_store.probes.probe import PROBES, probe_for


def test_descriptions_agree_with_the_code():
    assert dict(probe_for("mlp").defaults) == {field.name: field.default for field in fields(mlp.MlpSettings)}
    parameters = inspect.signature(knn.knn_predict).parameters
    assert dict(probe_for("knn").defaults) == {name: parameters[name].default for name in ("k", "temperature")}


def test_an_unknown_probe_gets_a_suggestion():
    with pytest.raises(ProbeError, match='Did you mean "mlp"'):
        probe_for("mlpp")


def test_only_the_mlp_imports_torch():
    assert [name for name, probe in PROBES.items() if probe.needs_torch] == ["mlp"]
    code = (
        "import sys, xares_store.probes.probe, xares_store.probes.knn, xares_store.probes.schedule, "
        "xares_store.metrics.registry, xares_store.metrics.statistics, xares_store.metrics.text; "
        "print(sorted({'torch', 'faiss', 'sklearn', 'jiwer'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

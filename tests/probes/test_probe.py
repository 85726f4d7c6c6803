from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields

from xares_store.kinds import PROBES_OF_KIND
from xares_store.measures import Knn, Mlp
from xares_store.probes import knn, mlp
from xares_store.probes.probe import PROBES


def test_a_task_without_settings_gets_the_defaults_of_the_probes():
    defaults = {field.name: field.default for field in fields(mlp.MlpSettings)}
    assert dict(Mlp()) == {name: defaults[name] for name in ("epochs", "batch_size", "learning_rates")}
    parameters = inspect.signature(knn.knn_predict).parameters
    assert dict(Knn()) == {name: parameters[name].default for name in ("k", "temperature")}


def test_probes_are_known_by_their_names():
    assert {name: (probe.name, probe.seeded) for name, probe in PROBES.items()} == {
        "mlp": ("mlp", True),
        "knn": ("knn", False),
        "frame": ("frame", True),
        "retrieval": ("retrieval", True),
        "llm": ("llm", True),
    }
    assert {name for names in PROBES_OF_KIND.values() for name in names} == set(PROBES)


def test_describing_probes_and_voting_imports_no_torch():
    code = (
        "import sys, xares_store.probes.probe, xares_store.probes.knn, xares_store.probes.schedule, "
        "xares_store.metrics.registry, xares_store.metrics.statistics, xares_store.metrics.text; "
        "print(sorted({'torch', 'faiss', 'sklearn', 'jiwer'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

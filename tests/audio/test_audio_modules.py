from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "xares_store" / "audio"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def test_reading_audio_needs_no_torch() -> None:
    assert len(MODULES) >= 7
    code = f"import sys; import {', '.join(f'xares_store.audio.{name}' for name in MODULES)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parents[1]
    )
    assert not {"torch", "webdataset", "transformers"} & set(done.stdout.split())

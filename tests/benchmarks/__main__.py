"""Run all benchmarks, each in a process of its own: memory and threads of one must not colour the next."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("embed", "decode", "evaluate", "probes", "frames", "import", "llm", "suite")


def main() -> int:
    """Return 1 when a benchmark could not be run."""
    failed = False
    for name in NAMES:
        print(f"\n== {name}", flush=True)
        failed |= subprocess.run([sys.executable, "-m", f"tests.benchmarks.bench_{name}"], check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""What the resident daemon loads, seen in a fresh interpreter: import contracts do not see what third parties load."""

import subprocess
import sys

LISTING = "import sys, edge_agent.runtime; print(*sorted(sys.modules))"
HEAVY = {"asyncio", "cryptography.x509", "multiprocessing", "numpy", "onnxruntime", "sqlalchemy", "typer", "zstandard"}


def test_the_waiting_daemon_loads_neither_mathematics_nor_heavy_libraries() -> None:
    run = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(HEAVY & set(run.stdout.split())) == []

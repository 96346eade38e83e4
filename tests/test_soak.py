"""Long runs: memory stays where it is after the first asks, and closed sessions leave nothing behind.

Each runs in a process of its own: what other tests left in the allocator comes and goes by more than a session takes.
"""
import subprocess
import sys

import pytest

from conftest import PHOTO

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
BEGIN = """
import gc
import numpy as np
import ps3_sdk
from PIL import Image

def tell():
    gc.collect()
    with open("/proc/self/status") as lines:
        print(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e3)
"""


def megabytes(folder, script: str) -> list[float]:
    """What a script told of its resident memory."""
    (folder / "asks.py").write_text(BEGIN + script)
    result = subprocess.run([sys.executable, "asks.py"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [float(line) for line in result.stdout.split()]


def test_asking_again_and_again_takes_no_more_memory(seeded, tmp_path):
    seen = megabytes(tmp_path, f"""
photo, budgets = np.asarray(Image.open({str(PHOTO)!r})), [2000, 100, 700, 1500]
with ps3_sdk.Session({str(seeded)!r}) as session:
    for i in range(56):
        session.ask(photo, f"thing {{i}}", tokens=budgets[i % len(budgets)], choices=["red", "green"])
        tell()
""")
    assert len(seen) == 56 and max(seen[16:]) - max(seen[:16]) < 10, seen


def test_sessions_that_are_closed_are_gone(tmp_path):
    seen = megabytes(tmp_path, """
for _ in range(36):
    with ps3_sdk.Session() as session:
        session.ask(np.zeros((378, 378, 3), np.uint8), "a sign", tokens=16)
    tell()
""")
    # what the allocator keeps goes up and down by some twenty megabytes; what sessions left behind would only grow
    assert len(seen) == 36 and max(seen[24:]) - max(seen[6:18]) < 40, seen

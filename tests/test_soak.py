"""Long runs: memory stays where it is after the first asks, and closed sessions leave nothing behind."""
import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ps3_sdk

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def resident_mb():
    gc.collect()
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e3


def test_asking_again_and_again_takes_no_more_memory(seeded, photo):
    budgets = [2000, 100, 700, 1500]
    with ps3_sdk.Session(seeded) as session:
        def ask(i):
            session.ask(photo, f"thing {i}", tokens=budgets[i % len(budgets)], choices=["red", "green"])
        for i in range(16):
            ask(i)
        before = resident_mb()
        for i in range(16, 56):
            ask(i)
        assert resident_mb() - before < 10


def test_sessions_that_are_closed_are_gone(tmp_path):
    """In a process of its own: what other tests left in the allocator moves by more than a session takes."""
    script = tmp_path / "asks.py"
    script.write_text(f"""import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, ps3_sdk
from test_soak import resident_mb
for _ in range(36):
    with ps3_sdk.Session() as session:
        session.ask(np.zeros((378, 378, 3), np.uint8), "a sign", tokens=16)
    print(resident_mb())
""")
    seen = [float(line) for line in subprocess.run([sys.executable, script], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()]
    # what the allocator keeps goes up and down by some twenty megabytes; what sessions left behind would only grow
    assert max(seen[24:]) - max(seen[6:18]) < 60, seen

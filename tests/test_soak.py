"""Long runs: memory stays where it is after the first asks, and closed sessions leave nothing behind.

Each runs in a process of its own. What is counted is what the allocator has handed out and not got back: what it keeps of freed
memory, which the resident size counts too, goes up and down by some sixty megabytes from session to session.
"""
import ctypes
import subprocess
import sys

import pytest

from conftest import PHOTO

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None) if sys.platform.startswith("linux") else None, "mallinfo2"),
                                reason="asks the allocator of glibc 2.33 and newer what it has handed out")
BEGIN = """
import ctypes
import gc
import os
import numpy as np
import ps3_sdk
from PIL import Image

class Handed(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks mapped usmblks fsmblks used free keepcost".split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Handed

def tell():
    gc.collect()
    handed = mallinfo2()
    mapped = sum("default.plan" in line for line in open("/proc/self/maps"))
    print((handed.used + handed.mapped) / 1e6, len(os.listdir("/proc/self/fd")) + mapped, len(os.listdir("/proc/self/task")))
"""


def held(folder, script: str) -> tuple[list[float], list[int], list[int]]:
    """What a script told: megabytes in use, files open or mapped, threads, each over time."""
    (folder / "asks.py").write_text(BEGIN + script)
    result = subprocess.run([sys.executable, "asks.py"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    return [float(row[0]) for row in rows], [int(row[1]) for row in rows], [int(row[2]) for row in rows]


def test_asking_again_and_again_takes_no_more_memory(seeded, tmp_path):
    used, files, threads = held(tmp_path, f"""
photo, budgets = np.asarray(Image.open({str(PHOTO)!r})), [2000, 100, 700, 1500]
with ps3_sdk.Session({str(seeded)!r}) as session:
    for i in range(56):
        session.ask(photo, f"thing {{i}}", tokens=budgets[i % len(budgets)], choices=["red", "green"])
        tell()
""")
    assert len(used) == 56 and max(used[16:]) - max(used[:16]) < 3, used
    assert max(files[16:]) <= max(files[:16]) and max(threads[16:]) <= max(threads[:16])


def test_sessions_that_are_closed_are_gone(tmp_path):
    used, files, threads = held(tmp_path, """
for _ in range(36):
    with ps3_sdk.Session() as session:
        session.ask(np.zeros((378, 378, 3), np.uint8), "a sign", tokens=16)
    tell()
""")
    assert len(used) == 36 and used[-1] - used[11] < 3, used
    assert files[-1] <= files[11] and threads[-1] <= threads[11]

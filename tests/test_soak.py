"""Long runs: memory stays where it is after the first asks, and closed sessions leave nothing behind."""
import gc
import sys

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


def test_sessions_that_are_closed_are_gone():
    frame = np.zeros((378, 378, 3), np.uint8)

    def open_ask_close():
        with ps3_sdk.Session() as session:
            session.ask(frame, "a sign", tokens=16)
    seen = []
    for _ in range(36):
        open_ask_close()
        seen.append(resident_mb())
    # what the allocator keeps goes up and down by some twenty megabytes; what sessions left behind would only grow
    assert max(seen[24:]) - max(seen[6:18]) < 20, seen

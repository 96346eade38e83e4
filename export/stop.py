"""SIGTERM, as systemd, docker stop and timeout send it, ends long work as an interruption from the keyboard does: nothing half-written stays."""
from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import Iterator

EXIT_TERMINATED = 128 + signal.SIGTERM      # as a shell says it


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Around work, or as a decorator: SIGTERM raises SystemExit in there. Where a program handles it otherwise, and outside the main thread, nothing changes."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)       # a second one would interrupt the cleaning up
        raise SystemExit(EXIT_TERMINATED)
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

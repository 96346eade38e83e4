"""A progress bar of text: redrawn on a terminal, a line every tenth elsewhere."""
from __future__ import annotations

import time


class Bar:
    """Call it with (done, total, text). It writes to `stream` alone. How long the rest takes is told by how long each call's step took, whatever was done before the first."""

    def __init__(self, stream, width: int = 30):
        self._stream, self._width, self._start, self._last, self._first = stream, width, time.perf_counter(), -1, None

    def __call__(self, done: int, total: int, text: str = "") -> None:
        self._first = done if self._first is None else self._first
        spent = time.perf_counter() - self._start
        left = spent / (done - self._first + 1) * (total - done)
        line = f"{done}/{total} {text} {spent:.0f} s, about {left:.0f} s left"
        if self._stream.isatty():
            full = self._width * done // max(total, 1)
            self._stream.write(f"\r\x1b[K[{'#' * full}{'.' * (self._width - full)}] {line}" + ("\n" if done >= total else ""))
        elif 10 * done // max(total, 1) > self._last:
            self._last = 10 * done // max(total, 1)
            self._stream.write(line + "\n")
        self._stream.flush()

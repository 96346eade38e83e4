"""Milliseconds per stage: of one answer (Timing), and over many (Timings)."""
from __future__ import annotations

import math
import time
from contextlib import contextmanager

from .errors import InputError

STAGES = ("encode_low", "encode_prompt", "score", "select", "gather", "encode_high", "decode")


class Timing:
    """Milliseconds per stage of one answer. `with timing.stage("gather"): ...` adds to a stage; + joins the parts of one answer."""

    __slots__ = ("_ms",)

    def __init__(self, stages_ms: dict[str, float] | None = None):
        self._ms: dict[str, float] = {}
        for name, ms in (stages_ms or {}).items():
            self.add(name, ms)

    @contextmanager
    def stage(self, name: str):
        """Time a block. What it raises goes through and its time counts."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter() - start) * 1e3)

    def add(self, name: str, ms: float) -> None:
        """Add milliseconds to a stage. Raises InputError for a name that is not in STAGES, or a time below 0 or not finite."""
        if name not in STAGES:
            raise InputError(f"[timing] got the stage {name!r}; the stages are {', '.join(STAGES)}. Use one of them.")
        if not 0 <= ms < math.inf:
            raise InputError(f"[timing] got {ms} ms for {name}; a time is finite and at least 0. Measure it with a monotonic clock.")
        self._ms[name] = self._ms.get(name, 0.0) + float(ms)

    @property
    def stages_ms(self) -> dict[str, float]:
        """{stage: ms} in the order of STAGES, those that ran."""
        return {name: self._ms[name] for name in STAGES if name in self._ms}

    @property
    def total_ms(self) -> float:
        return sum(self._ms.values())

    def __add__(self, other: "Timing") -> "Timing":
        if not isinstance(other, Timing):
            return NotImplemented
        joined = Timing(self._ms)
        for name, ms in other._ms.items():
            joined.add(name, ms)
        return joined

    def __repr__(self) -> str:
        return f"Timing({', '.join(f'{name} {ms:.1f}' for name, ms in self.stages_ms.items())}; total {self.total_ms:.1f} ms)"


@contextmanager
def shared(timings: list[Timing], name: str):
    """Time a block that serves several answers: each gets its share."""
    start = time.perf_counter()
    try:
        yield
    finally:
        for timing in timings:
            timing.add(name, (time.perf_counter() - start) * 1e3 / len(timings))


class Timings:
    """Mean and deviation of a stage's milliseconds over many answers, in constant memory.

        seen = Timings()
        for frame in frames: seen += session.ask(frame, prompt).timing
        seen.mean_ms["gather"], seen.deviation_ms["total"]
    """

    __slots__ = ("num_runs", "_moments")

    def __init__(self):
        self.num_runs = 0
        self._moments: dict[str, tuple[int, float, float]] = {}     # stage -> runs, mean, sum of squared differences

    def __add__(self, other: "Timing | Timings") -> "Timings":
        """One more run, or all runs of another Timings."""
        if isinstance(other, Timing):
            runs = 1
            parts = {name: (1, ms, 0.0) for name, ms in [*other.stages_ms.items(), ("total", other.total_ms)]}
        elif isinstance(other, Timings):
            runs, parts = other.num_runs, other._moments
        else:
            return NotImplemented
        joined = Timings()
        joined.num_runs, joined._moments = self.num_runs + runs, dict(self._moments)
        for name, moments in parts.items():
            joined._moments[name] = _merge(joined._moments.get(name, (0, 0.0, 0.0)), moments)
        return joined

    def _table(self, value) -> dict[str, float]:
        return {name: value(*self._moments[name]) for name in (*STAGES, "total") if name in self._moments}

    @property
    def mean_ms(self) -> dict[str, float]:
        """{stage or "total": mean over the runs that had the stage}, in the order of STAGES."""
        return self._table(lambda runs, mean, squares: mean)

    @property
    def deviation_ms(self) -> dict[str, float]:
        """{stage or "total": sample standard deviation}, 0 for a single run."""
        return self._table(lambda runs, mean, squares: math.sqrt(squares / (runs - 1)) if runs > 1 else 0.0)

    def __str__(self) -> str:
        deviation = self.deviation_ms
        return "\n".join([f"{self.num_runs} runs", *(f"{name:<14} {ms:9.2f} +- {deviation[name]:.2f} ms" for name, ms in self.mean_ms.items())])


def _merge(one, two):
    """Moments of two sets of runs together (Chan, Golub, LeVeque 1979: no cancellation, unlike a sum of squares)."""
    runs, step = one[0] + two[0], two[1] - one[1]
    return runs, one[1] + step * two[0] / runs, one[2] + two[2] + step * step * one[0] * two[0] / runs

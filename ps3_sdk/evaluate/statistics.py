"""Shares and how sure they are."""
from __future__ import annotations

import math

Z95 = 1.959963984540054     # of the normal distribution: 95 % lie within


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share out of n; (0, 1) for n = 0. For means of values in 0..1 it is too wide rather than too narrow.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    if not n:
        return 0.0, 1.0
    centre = (share + Z95 ** 2 / (2 * n)) / (1 + Z95 ** 2 / n)
    half = Z95 / (1 + Z95 ** 2 / n) * math.sqrt(share * (1 - share) / n + Z95 ** 2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of(values) -> dict:
    """Mean of values in 0..1, its interval and their number; None for both where there are none."""
    values = [float(value) for value in values]
    if not values:
        return {"share": None, "interval": None, "n": 0}
    mean = math.fsum(values) / len(values)
    return {"share": round(mean, 6), "interval": [round(end, 6) for end in wilson(mean, len(values))], "n": len(values)}

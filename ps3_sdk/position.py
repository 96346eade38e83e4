"""Position rows of patches: what is added to each patch so that the trunk knows where it is and at which scale."""
from __future__ import annotations

import numpy as np

from . import _core


def position_rows(tables: dict[str, np.ndarray], geometry: dict, size_px: int, ids: np.ndarray, num_threads: int = 0) -> np.ndarray:
    """Position rows of patches of one scale: the trunk's table resampled to the scale's grid, and the scale's residual where it has one.

    A residual is a table of every place (position_residual_<px>), or a row's plus a column's (position_row_<px>, position_column_<px>),
    which small models have: 87,480 places would weigh more than they do.

    Args:
        tables: of the bundle. ids: (n,) int32 patch ids, row-major.
    Returns:
        (n, width) f32.
    """
    n = size_px // geometry["patch_px"]
    rows = _core.position_rows(tables["position"], geometry["position_grid"], n, ids, tables.get(f"position_residual_{size_px}"),
                               geometry["position"] == "crop", num_threads)
    if f"position_row_{size_px}" in tables:
        rows += tables[f"position_row_{size_px}"][ids // n]
        rows += tables[f"position_column_{size_px}"][ids % n]
    return rows


def full_residual(tables: dict[str, np.ndarray], geometry: dict, size_px: int) -> np.ndarray | None:
    """The residual of every place of a scale, (n * n, width), a row's and a column's summed where that is how it is kept; None where there is none."""
    if f"position_residual_{size_px}" in tables:
        return np.ascontiguousarray(tables[f"position_residual_{size_px}"])
    if f"position_row_{size_px}" not in tables:
        return None
    rows, columns = tables[f"position_row_{size_px}"], tables[f"position_column_{size_px}"]
    return np.add(rows[:, None], columns[None], dtype=np.float32).reshape(len(rows) * len(columns), -1)

"""A module of this package as a command of its own process."""
from __future__ import annotations

import sys

_RUN = "import runpy, sys; sys.path = [p for p in sys.path if p]; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


def module(name: str, *arguments: object) -> list[str]:
    """`python -m name arguments`, but never with the current folder on the path: there may be a checkout of ps3_sdk, without its core."""
    return [sys.executable, "-c", _RUN, name, *map(str, arguments)]

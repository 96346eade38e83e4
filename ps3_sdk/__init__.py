"""ps3_sdk: see a whole frame once at low resolution, and for a prompt only the high-res patches that matter.

    import ps3_sdk
    session = ps3_sdk.Session("engine.plan")            # Session() opens the embedded default
    answer = session.ask("frame.jpg", "the exit sign")  # answer.text, answer.confidence, answer.regions
    answer.save_overlay("seen.jpg")
"""
from pathlib import Path as _Path

try:
    from . import _core
except ImportError as _error:
    raise ImportError(f"[ps3_sdk] {_Path(__file__).parent} has no compiled core: it is the source folder, or the installation is broken. "
                      "Start Python in another folder, or install with: pip install .") from _error

from .answer import Answer, Choice, Region, Timing, Timings
from .bundle import Bundle
from .encoding import Encoding
from .errors import (BudgetError, BundleError, ClosedError, ExportError, InputError, Ps3Error, RuntimeFailedError,
                     RuntimeMissingError)
from .frame import Frame
from .look import Look
from .sampling import Sampling
from .session import Session
from .similarity import Similarity

__version__ = "0.1.0"
__all__ = ["Answer", "BudgetError", "Bundle", "BundleError", "Choice", "ClosedError", "Encoding", "ExportError", "Frame", "InputError", "Look",
           "Ps3Error", "Region", "RuntimeFailedError", "RuntimeMissingError", "Sampling", "Session", "Similarity", "Timing", "Timings", "cmake_dir"]


def cmake_dir() -> str:
    """Folder to pass as CMAKE_PREFIX_PATH so that C++ projects find_package(ps3)."""
    from . import _core
    return str(_Path(_core.__file__).parent / "cpp")  # beside the compiled module, also in an editable install

"""One exception tree for the whole SDK, and one row per status code of the C core.

    Ps3Error
    |-- InputError           what the caller passed cannot be used (also a ValueError)
    |   `-- BudgetError      a budget of tokens cannot be met
    |-- BundleError          an engine.plan is missing, damaged, or not what it says
    |-- RuntimeMissingError  a package or device that was asked for is not here (also an ImportError)
    |-- RuntimeFailedError   a runtime or the core failed while working
    |-- ExportError          a checkpoint could not be read, exported, checked or built
    `-- ClosedError          a session, look or bundle was used after close()

Every message reads `[where] what was got; what is needed. What to do.`
"""


class Ps3Error(Exception):
    """Root of the tree: `except Ps3Error` catches all that the SDK raises on purpose."""


class InputError(Ps3Error, ValueError):
    """An argument has the wrong type, dtype, rank, size, range or name."""


class BudgetError(InputError):
    """A budget is negative, contradicts itself, or is too small for what must be looked at."""


class BundleError(Ps3Error):
    """A bundle file is missing, truncated, altered, or breaks the closed manifest."""


class RuntimeMissingError(Ps3Error, ImportError):
    """A runtime's package is not installed, or the device it was asked for is absent."""


class RuntimeFailedError(Ps3Error):
    """A runtime or the core stopped while working: out of memory, or a defect."""


class ExportError(Ps3Error):
    """A checkpoint does not fit the model, or an export missed its parity bound."""


class ClosedError(Ps3Error):
    """The object was closed; open a new one."""


STATUS_ERRORS = {
    "kInvalidArgument": InputError,     # a shape, dtype, stride or value breaks the op's contract
    "kOutOfRange": InputError,          # an id or count lies outside its grid
    "kUnsupported": InputError,         # a known request that this op does not do
    "kNoCuda": RuntimeMissingError,     # a CUDA overload of a build without CUDA
    "kOutOfMemory": RuntimeFailedError,
    "kInternal": RuntimeFailedError,    # a defect of the core itself
}
"""Status code of csrc (every one but kOk) -> the class its message is raised as."""

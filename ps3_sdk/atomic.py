"""Write a file beside its target, then rename it: a full disk, an error or a stop leaves what was there."""
import os
import secrets
from contextlib import contextmanager


@contextmanager
def replaced(path):
    """Yield the path of a new, empty file in the target's folder; rename it over `path` when the block ends, remove it when it raises.

    Raises: OSError of the system, as when the folder is missing or full. A link is written through, a folder is refused.
    """
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise IsADirectoryError(21, "is a folder", str(path))
    folder, name = os.path.split(target)
    beside = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(6)}.part")
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o666))
    try:
        yield beside
        os.replace(beside, target)
    except BaseException:
        os.unlink(beside)
        raise

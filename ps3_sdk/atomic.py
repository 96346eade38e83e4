"""Write a file beside its target, then rename it: a full disk, an error or a stop leaves what was there. And know before long work whether it can be written."""
import os
import secrets
import tempfile
from contextlib import contextmanager

from .errors import InputError


def check_place(path, where: str, error=InputError) -> None:
    """Raises `error`, beginning with [where]: a file cannot be written at `path`, for the system says so now or it is a folder."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise error(f"[{where}] {os.fspath(path)} is a folder; what is written is one file. Name it.")
    if not os.path.isdir(folder):
        raise error(f"[{where}] {os.fspath(path)} cannot be written: there is no folder {folder}. Make it, or choose another place.")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as failed:
        raise error(f"[{where}] {os.fspath(path)} cannot be written: {failed.strerror or failed}. Choose a writable folder with room.") from failed


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

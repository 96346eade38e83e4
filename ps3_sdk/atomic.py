"""Write a file beside its target, then rename it: a full disk, an error or a stop leaves what was there. And know before long work whether it can be written."""
import errno
import os
import secrets
import stat
import tempfile
from contextlib import contextmanager

from .errors import InputError


def check_place(path, where: str, error=InputError) -> None:
    """Raises `error`, beginning with [where]: a file cannot be written at `path`, for the system says so now or what is there is no file."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if what := _in_the_way(path):
        raise error(f"[{where}] {os.fspath(path)} is {what}; what is written is one file. Name it.")
    if not os.path.isdir(folder):
        raise error(f"[{where}] {os.fspath(path)} cannot be written: there is no folder {folder}. Make it, or choose another place.")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as failed:
        raise error(f"[{where}] {os.fspath(path)} cannot be written: {failed.strerror or failed}. Choose a writable folder with room.") from failed


@contextmanager
def replaced(path):
    """Yield the path of a new, empty file in the target's folder; rename it over `path` when the block ends, remove it when it raises.

    Raises: OSError of the system, as when the folder is missing or full. A link is written through; a folder, device, pipe or socket is refused.
    """
    target = os.path.realpath(path)
    if what := _in_the_way(path):
        raise OSError(errno.EINVAL, f"it is {what}", str(path))
    folder, name = os.path.split(target)
    beside = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(6)}.part")
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o666))
    try:
        yield beside
        os.replace(beside, target)
    except BaseException:
        os.unlink(beside)
        raise


def _in_the_way(path) -> str | None:
    """What lies at `path`, links followed, where that is no regular file and so not ours to replace."""
    try:
        mode = os.stat(path).st_mode
    except OSError:     # nothing; or writing will say why it cannot be reached
        return None
    return None if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"

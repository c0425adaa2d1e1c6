"""No file is ever left half-written."""

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from .command import UserError

UNFINISHED = ".writing-"        # how the names of files begin that are being written
UMASK = os.umask(0)     # asked by setting it: now, while no other thread writes a file
os.umask(UMASK)


@contextlib.contextmanager
def writing(path: str | Path):
    """Yield a temporary path beside `path` with the same ending; rename it to `path` on success.

    On any failure the temporary file is removed and `path` is as it was. A link is followed: the
    file that it points to is written. A full disk, a missing permission, a pipe or device in the
    place of a file and the like become a UserError that names `path`.
    """
    path, target = Path(path), Path(os.path.realpath(path))
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise UserError(f"{path}: is a pipe or a device; name a file")
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=UNFINISHED,
                                             suffix=path.suffix)
        os.close(handle)
        yield Path(temporary)
        with open(temporary, "rb+") as written:       # Windows flushes only what may be written
            os.fsync(written.fileno())
        mode = target.stat().st_mode if target.exists() else 0o666 & ~UMASK
        with contextlib.suppress(OSError):              # a network drive may not know it
            os.chmod(temporary, stat.S_IMODE(mode))     # mkstemp's 0600 would hide it from others
        os.replace(temporary, target)
    except Exception as error:
        reason = _disk_reason(error)
        if reason is None:
            raise
        raise UserError(f"{path}: cannot be written ({reason}); choose another place or make "
                        f"room") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def check_writable(path: str | Path) -> None:
    """Raise UserError now, and not after hours of work, if `path` could not be written."""
    if Path(path).is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    with contextlib.suppress(_OnlyAsked), writing(path):
        raise _OnlyAsked


class _OnlyAsked(Exception):
    pass


def clear_leftovers(folder: Path) -> None:
    """Remove what `writing` had not finished in a folder when its process was killed.

    For a run's folder, under its lock. Another command that writes a file there in that moment
    fails, and says so.
    """
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _disk_reason(error: Exception) -> str | None:
    """What the disk said, also where a library wrapped it in an exception of its own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if "(os error 112)" in str(error):      # Windows's number, as safetensors passes it on
        return os.strerror(errno.ENOSPC)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        if os.strerror(code) in str(error):
            return os.strerror(code)
    return None

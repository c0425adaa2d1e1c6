"""One run to a folder: an operating-system lock, which dies with its process."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import UserError, clear_leftovers, in_words

NAME = ".lock"
TRIES = 1000


class AtWork(UserError):
    """Another run holds the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder if need be, and hold it; AtWork if another run does.

    What a killed run had not finished writing is cleared away. The lock's file, and a folder in
    which nothing was written, are gone afterwards.
    """
    try:
        made = not folder.exists()
        file = _open(folder / NAME)
    except BlockingIOError as error:
        raise AtWork(f"{folder}: another run is at work there; wait for its end, or give another "
                     f"--output") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({in_words(error)}); choose another place or "
                        f"make room") from error
    try:
        clear_leftovers(folder)
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.name == "nt":         # where an open file cannot be removed
                file.close()
            (folder / NAME).unlink()
        file.close()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()          # if it is empty


def _open(path: Path) -> IO[bytes]:
    """The file, locked by this process alone; BlockingIOError if another has it. Its folder is made
    if need be, and anew where another run, as it ended, removed it meanwhile."""
    for more in reversed(range(TRIES)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "ab")
        except FileNotFoundError:
            if more:
                continue
            raise       # a folder that is there, and takes no file: the working one, removed
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()        # another run removed it as it ended: once more
    raise BlockingIOError


def _lock(file: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:     # on Windows
        import msvcrt
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:        # a file system that cannot lock
        warnings.warn(f"{file.name}: cannot be locked ({in_words(error)}); start no other run with "
                      f"this --output", stacklevel=5)

"""A user's mistake is one sentence, and no file is ever left half-written."""

import contextlib
import errno
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from tqdm import tqdm


UNFINISHED = ".writing-"        # how the names of files begin that are being written


LESS_MEMORY = ("try a smaller --size, fewer --frames or a smaller --batch-size, and when training "
               "--gradient-checkpointing")


class UserError(Exception):
    """Bad input: one sentence that names the file or the flag and says what to do."""


def in_words(error: Exception) -> str:
    """What an exception says, in one line."""
    said = " ".join(str(getattr(error, "strerror", None) or error).split())
    return said[:200] or type(error).__name__


def run(main) -> None:
    """Call `main()` as a command line: a UserError is printed without traceback, exit code 2."""
    warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
    if hasattr(signal, "SIGHUP"):       # a closed terminal ends no run; Windows has none
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _steady_streams():
        try:
            main()
        except UserError as error:
            sys.exit(_fail(str(error), code=2))
        except torch.OutOfMemoryError:
            sys.exit(_fail(f"the GPU's memory is full; {LESS_MEMORY}", code=2))
        except MemoryError:
            sys.exit(_fail(f"the memory is full; {LESS_MEMORY}", code=2))
        except OSError as error:
            sys.exit(_fail(f"{error.filename or 'a file'}: {in_words(error)}", code=2))
        except RuntimeError as error:
            if "allocate memory" not in str(error):     # what torch says on a CPU
                raise
            sys.exit(_fail(f"the memory is full; {LESS_MEMORY}", code=2))
        except KeyboardInterrupt:
            sys.exit(_fail("stopped", code=130))


class _Steady:
    """A stream whose end nobody may hear: what cannot be written there is lost, and no work is."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):       # the reader is gone; the stream is closed
            self._to_nobody()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._to_nobody()

    def _to_nobody(self) -> None:
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nobody:
            os.dup2(nobody.fileno(), self.stream.fileno())


@contextlib.contextmanager
def _steady_streams():
    """stdout and stderr that cannot end a command: closed ones, pipes that break, ASCII locales."""
    for number in range(3):             # else a file of ours gets the number, and what is printed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:              # closed before Python began
            stream = open(os.devnull, "w")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Steady(stream))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _fail(sentence: str, code: int) -> int:
    _say(f"error: {sentence}")
    return code


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)       # on a line of its own, also where a bar is half drawn


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
        with contextlib.suppress(OSError):              # a network drive may not know it
            os.chmod(temporary, 0o666 & ~_umask())      # mkstemp's 0600 would hide it from others
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

    For a folder that nobody else writes to now: a run's, under its lock.
    """
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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

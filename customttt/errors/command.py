"""A command: its flags, a user's mistake in one sentence, and a terminal that ends no run."""

import argparse
import contextlib
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

STOPPED = 130       # the exit code after Ctrl-C
LESS_MEMORY = ("try a smaller --size, fewer --frames or a smaller --batch-size, and when training "
               "--gradient-checkpointing")


class UserError(Exception):
    """Bad input: one sentence that names the file or the flag and says what to do."""


def in_words(error: Exception) -> str:
    """What an exception says, in one line."""
    said = " ".join(str(getattr(error, "strerror", None) or error).split())
    return said[:200] or type(error).__name__


def command_parser(doc: str | None = None, add_help: bool = True) -> argparse.ArgumentParser:
    """A parser of one command line, whose help is the module's docstring. No flag of it may be cut
    short; of one that is given twice the last counts, which is said. No path is empty."""
    parser = Parser(description=doc, allow_abbrev=False, add_help=add_help,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("store", None):
        parser.register("action", name, _Last)
    parser.register("action", argparse.BooleanOptionalAction, _LastOfTwo)
    parser.register("type", Path, _path)
    return parser


class Parser(argparse.ArgumentParser):
    """One whose faults are a UserError."""

    def error(self, message: str):
        unknown = message.removeprefix("unrecognized arguments: ")
        words = unknown != message and not unknown.startswith("-")
        hint = "if it belongs to a text, put that into quotes, or " if words else ""
        raise UserError(f"{message.removeprefix('argument ')}; {hint}see {self.prog} --help")


class _Last(argparse.Action):
    given = False

    def __call__(self, parser, namespace, values, option_string=None):
        if self.given:
            warnings.warn(f"{option_string}: given more than once; the last one counts",
                          stacklevel=2)
        self.given = True
        setattr(namespace, self.dest, values)


class _LastOfTwo(argparse.BooleanOptionalAction):
    given = False

    def __call__(self, parser, namespace, values, option_string=None):
        _Last.__call__(self, parser, namespace, values, option_string)
        super().__call__(parser, namespace, values, option_string)


def _path(text: str) -> Path:
    if not text:        # a shell's variable that is not set; it would be the current folder
        raise argparse.ArgumentTypeError("is empty: name a file or a folder")
    return Path(text)


def full_memory(error: BaseException) -> str | None:
    """Which memory is full, if that is what an exception says."""
    said = str(error)
    if (isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in said
            or "CUDA" in said and "out of memory" in said):
        return "the GPU's memory"
    if isinstance(error, MemoryError) or "allocate memory" in said:     # torch, on a CPU
        return "the memory"
    return None


def flag(name: str) -> str:
    """The flag of a setting: learning_rate -> --learning-rate."""
    return "--" + name.replace("_", "-")


def run_command(main) -> None:
    """Call `main()` as a command line, with what it returns as the exit code: a UserError is
    printed without traceback, exit code 2; SIGTERM is Ctrl-C."""
    warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
    warnings.filterwarnings("default", category=UserWarning)    # whatever PYTHONWARNINGS says
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):       # a closed terminal ends no run; Windows has none
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _steady_streams():
        try:
            if code := main():
                sys.exit(code)
        except UserError as error:
            sys.exit(_fail(str(error), code=2))
        except OSError as error:
            sys.exit(_fail(f"{error.filename or 'a file'}: {in_words(error)}", code=2))
        except (MemoryError, RuntimeError) as error:
            if (full := full_memory(error)) is None:
                raise
            sys.exit(_fail(f"{full} is full; {LESS_MEMORY}", code=2))
        except KeyboardInterrupt:
            sys.exit(_fail("stopped", code=STOPPED))


class _Steady:
    """A stream whose end nobody may hear: what cannot be written there is lost, and no work is."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BlockingIOError:             # the reader is slow: this is lost, and no more
            pass
        except (OSError, ValueError):       # the reader is gone; the stream is closed
            self._to_nobody()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BlockingIOError:
            pass
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
    tqdm.write(line, file=sys.stderr)       # takes a half-drawn bar away first

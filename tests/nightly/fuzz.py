"""Spoilt files of every kind, each read in a process that can be killed, with bounds on time and
memory. Whatever the file, the answer is its content or one sentence that names it."""

import multiprocessing
import random
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from . import seeds
from .mutate import spoil

SECONDS, MEGABYTES = 20, 1500       # of one case; memory beyond what the process held before it
LONGEST = 600                       # characters of a sentence


def case(seed: seeds.Seed, number: int, place: Path) -> Path:
    """What the reader is given: links to all that belongs to the seed, and its spoilt file."""
    rng = random.Random(number)
    root = seed.given if seed.given.is_dir() else seed.given.parent
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    copy = place / "case" if seed.given.is_dir() else place
    for path in root.rglob("*") if seed.given.is_dir() else ():
        if path.is_file() and path != seed.path:
            (copy / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(root)).symlink_to(path)
    for beside in ("whole", "tokenizer"):
        if (root.parent / beside).is_dir() and seed.given.is_dir():
            (place / beside).symlink_to(root.parent / beside)
        elif (root / beside).is_dir() and not seed.given.is_dir():
            (place / beside).symlink_to(root / beside)
    target = copy / seed.path.relative_to(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(spoil(seed.path.name, seed.path.read_bytes(), rng))
    return copy if seed.given.is_dir() else target


def answer(seed: seeds.Seed, given: Path) -> str:
    """"read", "refused", or what is wrong with the answer."""
    from customttt.errors import UserError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seed.read(given)
        return "read"
    except UserError as error:
        said = str(error)
        if "\n" in said or len(said) > LONGEST:
            return f"fault: not one short sentence: {said[:300]!r}"
        if given.name not in said and seed.path.name not in said:
            return f"fault: names no file: {said[:300]!r}"
        return "refused"
    except (Exception, SystemExit):
        return "fault: " + " | ".join(traceback.format_exc().strip().splitlines()[-4:])


def memory(field: str) -> float:
    """MB of this process, by /proc."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(field)).split()[1]) / 1024


def serve(pipe, made: list[seeds.Seed], place: Path) -> None:
    """Answer one case after the other until the pipe closes."""
    import os
    import resource
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)                    # FFmpeg and libtiff talk
    seeds.use_small_sd15()
    most = int((memory("VmSize") + 4 * MEGABYTES) * 2 ** 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while (job := pipe.recv()) is not None:
        index, number = job
        given = case(made[index], number, place)
        Path("/proc/self/clear_refs").write_text("5")       # the peak of memory starts anew
        before, start = memory("VmRSS"), time.perf_counter()
        said = answer(made[index], given)
        pipe.send((said, time.perf_counter() - start, memory("VmHWM") - before))


class Reader:
    """A process that reads, and that is replaced when it hangs or dies."""

    def __init__(self, made: list[seeds.Seed], place: Path):
        self.made, self.place, self.process = made, place, None

    def __call__(self, index: int, number: int) -> tuple[str, float, float]:
        if self.process is None:
            context = multiprocessing.get_context("fork")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other, self.made, self.place),
                                           daemon=True)
            self.process.start()
            other.close()
        self.pipe.send((index, number))
        if not self.pipe.poll(SECONDS):
            self.stop()
            return f"hang: more than {SECONDS} s", SECONDS, 0.0
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.stop()
            return f"crash: exit code {code}", 0.0, 0.0

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def fuzz(cases: int, first: int = 0, only: str = "", keep: Path | None = None) -> tuple[dict, list]:
    """`cases` of them, drawn by their number. Returns the figures and the faults.

    `only` chooses seeds by a part of their path; the files of faults are copied to `keep`.
    """
    answers, faults, slowest, most = Counter(), [], (0.0, ""), (0.0, "")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "seeds").mkdir()
        made = [s for s in seeds.make(folder / "seeds") if only in str(s.path.relative_to(folder))]
        read = Reader(made, folder / "place")
        for number in range(first, first + cases):
            index = random.Random(number).choices(range(len(made)), [s.weight for s in made])[0]
            said, seconds, megabytes = read(index, number)
            name = f"{made[index].path.relative_to(folder / 'seeds')} {number}"
            if said == "read" or said == "refused":
                if megabytes > MEGABYTES:
                    said = f"memory: {megabytes:.0f} MB"
                slowest, most = max(slowest, (seconds, name)), max(most, (megabytes, name))
            answers[said.partition(":")[0]] += 1
            if said not in ("read", "refused"):
                faults.append(f"{name}: {said}")
                if keep is not None:
                    shutil.copytree(folder / "place", keep / name.replace("/", "_"), symlinks=False,
                                    dirs_exist_ok=True)
        read.stop()
    return {"cases": cases, "kinds of file": len(made), **answers,
            "slowest (s)": f"{slowest[0]:.1f} ({slowest[1]})",
            "most memory (MB)": f"{most[0]:.0f} ({most[1]})"}, faults

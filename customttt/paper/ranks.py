"""Work that several processes share. They are torchrun's, and talk through files alone."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed.run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from tqdm import tqdm

from ..errors import UserError

Result = TypeVar("Result")
LOCAL = 2       # processes of one thread that a command on a CPU becomes by itself


def start_ranks(device: str) -> None:
    """Called once the flags are checked. A command on a CPU that torchrun did not start begins
    again under it, and ends here. On a CPU each process has one thread: with another number sums
    round otherwise, and results would differ in their last digits."""
    module = getattr(sys.modules["__main__"].__spec__, "name", "")
    if torch.device(device).type != "cpu" or not module.startswith("customttt."):
        return
    torch.set_num_threads(1)
    if "LOCAL_RANK" in os.environ:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")    # no closed terminal
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun.main(["--standalone", "--nproc-per-node", str(LOCAL), "-m", "--", module,
                       *sys.argv[1:]])      # "--": else it takes flags for its own, cut short
    except ChildFailedError as error:       # it said why, unless it was killed
        _, first = error.get_first_failure()
        if first.exitcode < 0:
            raise UserError(f"a process was ended by signal {-first.exitcode} (is the memory "
                            f"full?); the same command goes on where it was") from error
        sys.exit(2)
    except SignalException:
        sys.exit(130)
    sys.exit()


def rank_of_ranks() -> tuple[int, int]:
    """Which process this is, of how many."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def own_device(name: str) -> str:
    """The device of this process: of "cuda", each process of torchrun has a GPU of its own."""
    alone = name != "cuda" or "LOCAL_RANK" not in os.environ
    return name if alone else f"cuda:{os.environ['LOCAL_RANK']}"


def shared(jobs: Sequence[Callable[[], Result]], title: str) -> list[Result] | None:
    """Results of jobs that keep theirs in a cache; None in all processes but the first.

    Each process does its share. The first then gathers the others' results from the cache, last
    ones first, and makes those that are not there yet.
    """
    rank, ranks = rank_of_ranks()
    start, end = (len(jobs) * (rank + i) // ranks for i in (0, 1))
    others = reversed(range(end, len(jobs))) if rank == 0 else ()
    own = title if ranks == 1 else f"{title}, share {rank + 1} of {ranks}"
    results = {}
    with contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO() if rank else sys.stderr):  # one bar is enough
        for part, said in ((range(start, end), own), ([*others], f"{title}, other shares")):
            for k in tqdm(part, said, disable=not part):
                results[k] = jobs[k]()
    return [results[k] for k in range(len(jobs))] if rank == 0 else None

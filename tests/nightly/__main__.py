"""Run it all: `python -m tests.nightly [fuzz kills disk together many]`. Exit code 1: a fault."""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from . import disk, fuzz, kills, many, together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=[], metavar="PART")
    parser.add_argument("--cases", type=int, default=5000, help="of fuzz (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="case of fuzz")
    parser.add_argument("--only", default="", help="fuzz: seeds with this in their path")
    parser.add_argument("--keep", type=Path, help="fuzz: a folder for the files of faults")
    args = parser.parse_args()
    parts = {"fuzz": lambda: fuzz.fuzz(args.cases, args.first, args.only, args.keep),
             "kills": lambda: kills.kills(args.kills), "disk": lambda: disk.disk(sizes=3),
             "together": lambda: together.together(rounds=2),
             "many": lambda: many.many(images=1000, seconds=3600)}
    failed = False
    for name in args.parts or parts:
        start = time.perf_counter()
        figures, faults = parts[name]()
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items())
              + f", faults {len(faults)}, {time.perf_counter() - start:.0f} s")
        for fault in faults:
            print(f"  {fault}")
        failed |= bool(faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()

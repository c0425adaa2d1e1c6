"""Seconds and peak memory of this project beside diffusers and peft, written as a table.

  python -m tests.benchmarks                                  every row, at full size
  python -m tests.benchmarks forward temporal --rounds 5      some rows
  python -m tests.benchmarks --precision bf16
  python -m tests.benchmarks --before CHECKOUT                and beside another checkout of this

Stable Diffusion 1.5 and AnimateDiff v3 in size, 256 x 256 pixels, 16 frames, random weights. Each
measurement is a process of its own, and those of the sides alternate. Needs the [test] extra, some
24 GB of memory and an idle machine; all rows take hours on two CPU cores. The table goes between
its marks in docs/performance.md: rows that were not run stay if the machine is the same.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from customttt.errors import UserError, command_parser, run_command, writing
from customttt.files.random_model import random_model
from customttt.files.save import save_model
from customttt.recipes import SAMPLING, Recipe
from customttt.run.memory import total
from customttt.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {
    "load": "loading a model folder",
    "forward": "one forward of the UNet",
    "denoise": "a guided DDIM step",
    "spatial": "a spatial training step, layers {2, 6}",
    "temporal": "a temporal training step, layers {2, 5}",
    "placement": "a spatial and a temporal step: the paper's placements, and DiffDirector's full "
                 "one as the peer",
    "reference": "a 5-step reference",
    "ttt": "a ttt step: two references, two student passes",
    "decode": "VAE decoding of the frames",
    "tiny": "the miniature's default run, from start to end",
}
HEAD = ("| work | ours | peer | ratio | before | ratio | memory: ours | peer | ratio | before | "
        "ratio | share of matrix rate: ours | peer | matrix rate, GFLOP/s | processes a side |")


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ABOUT)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=3, help="processes a side (default: 3)")
    parser.add_argument("--runs", type=int, default=1, help="timed runs a process (default: 1)")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--small", action="store_true", help="small random weights, to try this")
    parser.add_argument("--output", type=Path, help="where the table goes (default: "
                        "docs/performance.md; with --small it must be given)")
    args = parser.parse_args()
    if args.output is None:
        if args.small:
            raise UserError("--output: name a file, so that a trial does not replace what was "
                            "measured; it may be empty")
        args.output = ROOT / "docs" / "performance.md"
    if unknown := set(args.rows) - ABOUT.keys():
        raise UserError(f"{min(unknown)}: no row of the benchmark; there are {', '.join(ABOUT)}")
    if not args.output.exists():
        raise UserError(f"{args.output}: no such file; the table goes between its marks")
    with tempfile.TemporaryDirectory() as folder:
        save_model(random_model(3, full_size=not args.small), Path(folder) / "model",
                   torch.float16)
        rate = measured(args, "rate", "ours", folder)
        per_second = rate["operations"] / min(rate["seconds"])
        print(f"matrix rate: {per_second / 1e9:,.0f} GFLOP/s", flush=True)
        head = machine(args)
        for row in args.rows or ABOUT:
            sides = [side for side in ("ours", "peer", "before")
                     if (side != "before" or args.before) and (side, row) != ("peer", "tiny")]
            results = {side: [] for side in sides}
            for _ in range(args.rounds):
                for side in sides:
                    results[side].append(measured(args, row, side, folder))
            line = table_row(row, results, per_second)
            print(line, flush=True)
            write(args.output, f"{args.device.split(':')[0]} {args.precision}", head, line)


def measured(args: argparse.Namespace, row: str, side: str, folder: str) -> dict:
    """What work.py prints, in a process that sees this checkout or the one before."""
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        (Path(empty) / "weights").symlink_to(ROOT / "weights")
        flags = {"row": row, "side": side, "model": f"{folder}/model", "folder": empty,
                 "device": args.device, "precision": args.precision, "small": args.small,
                 "runs": args.runs, "commands": default_run(args) if row == "tiny" else []}
        checkout = args.before.resolve() if side == "before" else ROOT
        ours = side == "ours" or row == "placement"
        pages = {"THP_MEM_ALLOC_ENABLE": "1"} if ours else {}       # as train.py and sample.py do
        child = subprocess.run(
            [sys.executable, ROOT / "tests" / "benchmarks" / "work.py", json.dumps(flags)],
            env=os.environ | {"PYTHONPATH": str(checkout)} | pages, capture_output=True, text=True)
    if child.returncode:
        raise UserError(f"{row}, {side}: {child.stderr.strip()[-600:]}")
    return json.loads(child.stdout.splitlines()[-1])


def default_run(args: argparse.Namespace) -> list[list[str]]:
    """The miniature's commands: three stages and a sample. Its recipe is said as flags, since the
    checkout before has another."""
    where = ["--device", args.device, "--precision", args.precision]
    short = ["--steps", "1", "--sheet-every", "0"] if args.small else []
    return [*(["train.py", "--stage", name, *flags_of(stage.recipe), *where, *short]
              for name, stage in STAGES.items()), ["sample.py", *flags_of(SAMPLING), *where]]


def flags_of(recipe: Recipe) -> list[str]:
    """The tiny recipe, as it is given to train.py or sample.py."""
    flags = []
    for name, setting in (recipe.full | recipe.tiny).items():
        value, flag = setting.value, name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return flags


def table_row(row: str, results: dict[str, list[dict]], per_second: float) -> str:
    """Medians over the processes, ratios to the peer and to the checkout before."""
    seconds = {side: statistics.median(t for each in some for t in each["seconds"])
               for side, some in results.items()}
    memory = {side: statistics.median(each["peak"] for each in some)
              for side, some in results.items()}
    share = {side: some[0]["operations"] / seconds[side] / per_second
             for side, some in results.items() if some[0]["operations"]}

    def shown(values: dict, side: str, form: str) -> str:
        return format(values[side], form) if side in values else ""

    def ratio(values: dict, side: str) -> str:
        return f"{values['ours'] / values[side]:.2f}" if values.get(side) else ""
    cells = [ABOUT[row], shown(seconds, "ours", ".3g"), shown(seconds, "peer", ".3g"),
             ratio(seconds, "peer"), shown(seconds, "before", ".3g"), ratio(seconds, "before"),
             shown(memory, "ours", ".2f"), shown(memory, "peer", ".2f"), ratio(memory, "peer"),
             shown(memory, "before", ".2f"), ratio(memory, "before"),
             shown(share, "ours", ".0%"), shown(share, "peer", ".0%"),
             f"{per_second / 1e9:,.0f}", str(len(results["ours"]))]
    return "| " + " | ".join(cells) + " |"


def machine(args: argparse.Namespace) -> str:
    """What the figures were measured on, without the machine's name."""
    name = platform.processor() or platform.machine()
    if torch.device(args.device).type == "cuda":
        name = torch.cuda.get_device_name(args.device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if "model name" in line), name)
    memory = total(torch.device(args.device))
    size = "small random weights (to try the tool)" if args.small else "full size"
    return (f"{name}, {torch.get_num_threads()} threads, {memory / 1e9:.0f} GB; PyTorch "
            f"{torch.__version__.partition('+')[0]}; {size}. Medians, in seconds and GB.")


def write(path: Path, name: str, head: str, line: str) -> None:
    """Put a row into the table `name`; the rows of another machine go."""
    start, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    text = path.read_text(encoding="utf-8")
    if start not in text:
        text = f"{text.rstrip()}\n\n{start}\n{end}\n"
    before, _, rest = text.partition(start)
    old, _, after = rest.partition(end)
    same = head in old
    rows = {each.split("|")[1].strip(): each for each in old.splitlines()
            if same and each.startswith("| ") and each != HEAD}
    rows[line.split("|")[1].strip()] = line
    ordered = [rows[about] for about in ABOUT.values() if about in rows]
    table = "\n".join([HEAD, "|---" * HEAD.count(" |") + "|", *ordered])
    with writing(path) as temporary:
        temporary.write_text(f"{before}{start}\n{head}\n\n{table}\n{end}{after}",
                             encoding="utf-8")


if __name__ == "__main__":
    run_command(main)

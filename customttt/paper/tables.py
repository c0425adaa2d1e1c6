"""Tables 1, 3 and 4 of the paper: which systems, which layers, how many reference steps.

  python -m customttt.paper.tables 4 --protocol protocol.json [--output output/paper]
  torchrun --standalone --nproc-per-node 8 -m customttt.paper.tables 4 --protocol protocol.json

The protocol names groups: a subject, a motion, and prompts that join them (the paper has ten
groups of five prompts of different scenes: 50 videos). Paths are relative to its file.

  {"groups": [{"images": "bear/", "subject": "a teddy bear", "video": "lifting.mp4",
               "motion": "a man is lifting weights",
               "prompts": ["a teddy bear is lifting weights on the snow"]}]}

Every LoRA, clip and score is kept under --output and shared by the tables, so that the same command
goes on where it was stopped. On a CPU the command becomes two processes of one thread; under
torchrun each process takes its share. When all clips are there, the table is printed beside the
paper's figures and written, with all scores (table-4-seed-0.json). Another --seed is another file.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ..errors import UserError, command_parser, run_command
from ..files.checks import clipped
from ..files.reading import read_json
from ..run.options import check_prompt
from .cache import open_cache, write_result
from .flags import add_shared_flags, check_shared
from .intervals import (bootstrap, interval, markdown, number_to_tell, pearson, shown, spearman,
                        zeros_text)
from .ranks import shared, start_ranks
from .rows import Bench, Group, Row, Scorer, Unit, check_flags, paper_scorer, told_of
from .systems import SYSTEMS
from .tracks import TRACKERS, check_tracker

KEYS = {"images", "subject", "video", "motion", "prompts"}      # of a group
BASE, OURS, AS_THEY_ARE = "the base model", "CustomTTT", "without test-time training"


def with_layers(spatial: Sequence[int], temporal: Sequence[int]) -> Row:
    return Row(f"W_s {spatial}, W_t {temporal}",
               subject_flags=("--spatial-layers", *map(str, spatial)),
               motion_flags=("--temporal-layers", *map(str, temporal)))


TABLES = {
    1: [Row(BASE, (), ()),
        *(Row(name, tuple(stage.name for stage in subject), tuple(stage.name for stage in motion))
          for name, (subject, motion) in SYSTEMS.items()), Row(OURS, ttt=())],
    3: [*(with_layers(s, t) for t in ((1, 7), (2, 5)) for s in ((0, 1), (2, 6))),
        Row("the model's recipe")],
    4: [Row(AS_THEY_ARE),
        *(Row(f"{n} reference steps", ttt=("--reference-steps", str(n))) for n in (1, 3, 5, 10))],
}
# Differences that the paper speaks of: its choice minus the others. And of each system and the base
# model, which the paper leaves out.
DIFFERENCES = {1: [*((name, BASE) for name in (*SYSTEMS, OURS)),
                   *((OURS, name) for name in SYSTEMS)],
               3: [(TABLES[3][3].name, row.name) for row in TABLES[3][:3]],
               4: [("5 reference steps", name) for name in (AS_THEY_ARE, "10 reference steps")]}
METRICS = ("CLIP-T", "CLIP-I", "consistency", "motion fidelity")
TRUTHS = ("true identity", "true motion")       # of the tiny world
PRINTED = .001      # by so much a difference of two figures that are rounded to 0.001 may be off
PAPER = {       # the supplement's figures, in the order of METRICS
    "table-1": {"Full LoRA": (.294, .687, .977, .746), "DreamVideo": (.271, .681, .969, .563),
                "MotionDirector": (.269, .690, .965, .649),
                "DiffDirector": (.287, .685, .971, .693), OURS: (.301, .712, .978, .721)},
    "table-3": dict(zip((row.name for row in TABLES[3]), (
        (.294, .655, .978, .610), (.298, .715, .985, .638), (.288, .645, .977, .710),
        (.295, .696, .979, .719)))),
    "table-4": {AS_THEY_ARE: (.295, .696, .979, .719),
                "5 reference steps": (.308, .699, .980, .739),
                "10 reference steps": (.302, .680, .978, .744)},
}
PAPER["stages"] = {     # of the tiny world's study: the same two rows, on more prompts
    "joined, no ttt": PAPER["table-4"][AS_THEY_ARE],
    "joined, ttt": PAPER["table-4"]["5 reference steps"]}


def read_protocol(path: Path) -> list[Group]:
    given = read_json(path).get("groups")
    if not isinstance(given, list) or not given or not all(map(is_group, given)):
        raise UserError(f"--protocol {path}: must have \"groups\", each with images, motion, "
                        f"subject and video, which are texts, and prompts, a list of them")
    groups = [Group(path.parent / each["images"], each["subject"], path.parent / each["video"],
                    each["motion"], tuple(each["prompts"])) for each in given]
    for group in groups:
        for file in (group.images, group.video):
            if not file.exists():
                raise UserError(f"--protocol {path}: {file}: no such file or folder")
        if " is " not in group.motion:
            raise UserError(f"--protocol {path}: the motion \"{group.motion}\" does not say "
                            f"\"... is ...\"")
        for prompt in group.prompts:
            check_prompt(prompt, f"--protocol {path}: the prompt {clipped(prompt)}")
            if not group.words.search(prompt):
                raise UserError(f"--protocol {path}: the prompt \"{prompt}\" does not have the "
                                f"subject's words, \"{group.subject}\"")
    if len({group.name for group in groups}) < len(groups):
        raise UserError(f"--protocol {path}: two groups have the same names of images and video; "
                        f"name the files apart")
    return groups


def is_group(given) -> bool:
    return (isinstance(given, dict) and given.keys() == KEYS
            and isinstance(given["prompts"], list) and bool(given["prompts"])
            and all(isinstance(text, str) and text
                    for text in (*given["prompts"], *(given[key] for key in KEYS - {"prompts"}))))


# ---------------------------------------------------------------------------------- a result

def means(result: dict, row: str, metric: str) -> list[float]:
    """One number a group, the mean of its clips: these share their LoRAs, so that they do not count
    as independent."""
    column = result["metrics"].index(metric)
    values: dict[str, list[float]] = {}
    for name, group, _, scores in result["clips"]:
        if name == row:
            values.setdefault(group, []).append(scores[column])
    return [sum(each) / len(each) for each in values.values()]


def differences(result: dict, a: str, b: str, metric: str) -> list[float]:
    """Row a minus row b, group by group."""
    return [x - y for x, y in zip(means(result, a, metric), means(result, b, metric))]


def printed(result: dict, row: str, metric: str) -> float | None:
    """The paper's figure, if it has one."""
    figures = PAPER.get(result["name"], {}).get(row)
    return None if figures is None or metric not in METRICS else figures[METRICS.index(metric)]


def text(result: dict) -> str:
    """Mean and 95% interval over the groups, the paper's figure in brackets; then what rows differ
    by, group by group."""
    lines = []
    for row in result["rows"]:
        cells = []
        for metric in result["metrics"]:
            paper = printed(result, row, metric)
            cells.append(shown(means(result, row, metric))
                         + ("" if paper is None else f" ({paper:.3f})"))
        lines.append([row, *cells])
    for a, b in result["differences"]:
        cells = []
        for metric in result["metrics"]:
            papers = [printed(result, row, metric) for row in (a, b)]
            cells.append(shown(differences(result, a, b, metric), "{:+.3f}")
                         + ("" if None in papers else f" ({papers[0] - papers[1]:+.3f})"))
        lines.append([f"*{a}* minus *{b}*", *cells])
    return markdown(["", *result["metrics"]], lines)


def unfollowed_text(result: dict) -> str:
    """Of each row, the clips whose motion fidelity is 0."""
    column = result["metrics"].index("motion fidelity")
    return zeros_text({row: [scores[column] for name, _, _, scores in result["clips"]
                             if name == row] for row in result["rows"]})


def correlations(result: dict) -> dict:
    """Of scores whose truth is known: {metric: {truth: {"Pearson": [r, low, high], "Spearman":
    ...}}}."""
    columns = dict(zip(result["metrics"], torch.tensor([clip[3] for clip in result["clips"]]).T))
    groups = [group for _, group, _, _ in result["clips"]]
    found = {}
    for metric, column in columns.items():
        if metric in (*METRICS, "motion fidelity (published)", "CLIP-T (truth)"):
            found[metric] = {name: {kind: [round(each, 3) for each in bootstrap(
                of, column, columns[name], groups)] for kind, of in (
                    ("Pearson", pearson), ("Spearman", spearman))} for name in TRUTHS}
    return found


def correlation_text(result: dict) -> str:
    """What customttt.tiny.study.metrics found: each metric with each truth."""
    found = result["correlations"]
    columns = [(truth, kind) for truth, kinds in next(iter(found.values())).items()
               for kind in kinds]
    return markdown(["", *(f"{truth}, {kind}" for truth, kind in columns)], (
        [metric, *("{:+.2f} [{:+.2f}, {:+.2f}]".format(*of[truth][kind])
                   for truth, kind in columns)] for metric, of in found.items()))


def verdicts(result: dict) -> list[str]:
    """One sentence for each difference that the paper has: does this result have it too? If the
    interval holds 0 and the paper's difference: how many groups like these would decide it."""
    found = []
    for a, b in result["differences"]:
        for metric in METRICS:
            papers = [printed(result, row, metric) for row in (a, b)]
            if None in papers or papers[0] == papers[1]:
                continue
            paper, here = papers[0] - papers[1], differences(result, a, b, metric)
            mean, half = interval(here)
            apart = abs(paper) - PRINTED        # the paper's difference, at the least
            if abs(mean) > half:
                said = ("**against the paper**" if mean * paper < 0 else
                        "as the paper" if abs(mean - paper) <= half + PRINTED else
                        "the paper's sign, but its size is outside the interval")
            elif len(here) == 1:
                said = "undecided: one group has no interval"
            elif abs(mean - paper) > half + PRINTED:
                said = "**not found**: none shows, and the paper's is outside the interval"
            elif apart < PRINTED / 2:
                said = "undecided: the paper's difference is no more than its rounding"
            else:
                groups = number_to_tell(here, apart)
                digit = 10 ** (len(str(groups)) - 1)        # one digit is all that it has
                said = (f"undecided; an interval too narrow to hold both 0 and the paper's "
                        f"difference takes at most about {-(-groups // digit) * digit:,} groups")
            found.append(f"{metric}, *{a}* minus *{b}*: {paper:+.3f} in the paper, "
                         f"{shown(here, '{:+.3f}')} here: {said}.")
    return found


# ---------------------------------------------------------------------------------- the command

def make(args: argparse.Namespace, name: str, units: Sequence[Unit], scorers: Sequence[Scorer],
         pairs: Sequence[tuple[str, str]], module: str,
         more: Callable[[dict], dict] = lambda result: {}) -> dict | None:
    """Train, sample and score all units; print the table and write it. Returns what was written,
    in the first process. `module`: whose command this is; `more`: further entries, made of it."""
    bench = Bench(args, open_cache(args), tuple(scorers))
    units = [unit for unit in units if args.prompts is None or unit.k < args.prompts]
    for row in dict.fromkeys(unit.row for unit in units):
        check_flags(row)
    for group in dict.fromkeys(unit.group for unit in units):
        group.check()
        for scorer in scorers:
            scorer.check(group)
    start_ranks(args.device)
    scored = shared([partial(bench.scores, unit) for unit in units], name)
    if scored is None:
        return None
    result = {
        "name": name, "seed": args.seed, "made of": bench.cache.told | {
            "settings": told_of(units, args)},
        "scored with": {scorer.name: scorer.told for scorer in scorers},
        "rows": list(dict.fromkeys(unit.row.name for unit in units)),
        "differences": [list(pair) for pair in pairs], "metrics": list(scored[0][0]),
        "clips": [[unit.row.name, unit.group.name, unit.prompt,
                   [round(value, 5) for value in scores.values()]]
                  for unit, (scores, _) in zip(units, scored)]}
    result = more(result) | result
    print(text(result))
    write_result(result, args.output, module, [folder for _, made in scored for folder in made])
    return result


def units_of(rows: Sequence[Row], groups: Sequence[Group]) -> list[Unit]:
    """Group by group, since rows share what they have learned."""
    return [Unit(row, group, k) for group in groups for row in rows
            for k in range(len(group.prompts))]


def make_table(args: argparse.Namespace, table: int, groups: Sequence[Group],
               scorers: Sequence[Scorer], module: str) -> dict | None:
    """One of TABLES."""
    return make(args, f"table-{table}", units_of(TABLES[table], groups), scorers,
                DIFFERENCES[table], module)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What all that trains, samples and scores shares."""
    add_shared_flags(parser)
    parser.add_argument("--tracker", choices=list(TRACKERS), default="lucas-kanade")
    parser.add_argument("--prompts", type=int, metavar="N",
                        help="the first N of each group's alone (default: all)")
    parser.add_argument("--steps", type=int, metavar="N", help="of each training, to try it out")
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="of each training: less memory, more time")


def check(args: argparse.Namespace) -> None:
    check_shared(args)
    check_tracker(args.tracker, args.device)


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("table", type=int, choices=list(TABLES))
    parser.add_argument("--protocol", type=Path, required=True, metavar="FILE")
    add_flags(parser)
    args = parser.parse_args()
    check(args)
    make_table(args, args.table, read_protocol(args.protocol), [paper_scorer(args)],
               "customttt.paper.tables")


if __name__ == "__main__":
    run_command(main)

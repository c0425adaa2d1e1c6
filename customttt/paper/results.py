"""All results on one page: tables.py's and probe.py's beside the paper's figures.

  python -m customttt.paper.results [--made output/paper] [--kept docs/results]

Copies the results of --made, if there are any (.json; of the probe also .png), to --kept, and draws
from what is there: KEPT.md, and a picture of each table. Seeds of one table are put together, if
all else that made them is the same. What the paper says and what is found here stand side by side,
and where the two differ in sign, or an interval is too wide to tell, the page says so.
"""

import os
import shutil
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError, command_parser, run_command, writing
from ..files.reading import read_json
from . import probe, tables
from .cache import OUTPUT
from .figures import draw_dots
from .intervals import interval
from .tracks import evaluation_package

KEPT = Path("docs/results")
TITLES = {      # name of a result -> its title, in the order of the page
    "table-1": "Table 1: the systems", "probe-subject": "Table 2, Figure 1: layers and the subject",
    "probe-motion": "Table 2, Figure 2: layers and the motion",
    "table-3": "Table 3: which layers have LoRA", "table-4": "Table 4: reference steps",
    "stages": "What each stage does", "metrics": "What the metrics are worth",
    "search-ttt": "Test-time training: what other settings gain",
    "student": "Test-time training: what it does to its student"}

PAPER_CLIPS = 50    # a row of its tables, of ten groups

# In all seeds of a result.
SAME = ("rows", "metrics", "first", "made of", "scored with")


def files_of(made: Path, kept: Path) -> dict[str, Path]:
    """The files of all results by name, those of `made` before those of `kept`."""
    files = sorted(kept.glob("*-seed-*"))
    for name in TITLES:
        files += sorted(made.glob(f"{name}-seed-*"))
    return {file.name: file for file in files}


def copy(files: Iterable[Path], kept: Path) -> None:
    for file in files:
        if file.parent != kept:
            warn_of_other(file, kept / file.name)
            with writing(kept / file.name) as temporary:
                shutil.copyfile(file, temporary)


def warn_of_other(made: Path, kept: Path) -> None:
    """A trial, of fewer steps or clips, has the name of what was kept before."""
    if made.suffix != ".json" or made.name.endswith(".run.json") or not kept.exists():
        return
    new = read_json(made)
    try:
        old = read_json(kept)
        other = [key for key, value in sameness(old).items() if value != sameness(new)[key]]
        fewer = len(new[list(new)[-1]]) < len(old[list(old)[-1]])
    except (UserError, LookupError, AttributeError, TypeError):
        return      # what was kept is damaged
    if other or fewer:
        unlike = [f"other {key!r}" for key in other] + ["fewer clips or pairs"] * fewer
        warnings.warn(f"{kept}: replaced by a result with {', '.join(unlike)}", stacklevel=2)


def sameness(result: dict) -> dict:
    """What two seeds of a result have in common, if they can be put together."""
    made = {key: value for key, value in result.get("made of", {}).items() if key != "seed"}
    return {key: result.get(key) for key in SAME} | {"made of": made}


def once(pairs: list) -> list:
    """Each pair once, with the mean of its scores: those of two seeds do not count as two."""
    found: dict[tuple, list[dict]] = {}
    for pair, scores in pairs:
        found.setdefault(tuple(pair), []).append(scores)
    return [[pair, {name: [sum(each) / len(each) for each in zip(*(of[name] for of in seeds))]
                    for name in seeds[0]}] for pair, seeds in found.items()]


def read_results(files: dict[str, Path]) -> dict[str, tuple[dict, list[dict]]]:
    """By name: the result, that of all seeds together, and how each was made."""
    found: dict[str, tuple[dict, list[dict]]] = {}
    for called, file in sorted(files.items()):
        if file.suffix != ".json" or called.endswith(".run.json"):
            continue
        beside = called.removesuffix("json") + "run.json"
        result, run = read_json(file), read_json(files.get(beside, file.with_name(beside)))
        if not {"name", "seed"} <= result.keys() or not {"command", "seconds"} <= run.keys():
            raise UserError(f"{file}: not a result that tables.py or probe.py wrote, or {beside} "
                            f"is none; remove both, or make them again")
        items = list(result)[-1]        # the clips, or the pairs
        if result["name"] in found:
            first, runs = found[result["name"]]
            for key, value in sameness(first).items():
                if value != sameness(result)[key]:
                    raise UserError(f"{file}: \"{key}\" is not that of the other seeds' results; "
                                    f"make all with the same model, flags and version")
            first[items] += result[items]
            runs.append(run)
        else:
            found[result["name"]] = result, [run]
    for result, runs in found.values():
        if "pairs" in result:
            result["pairs"] = once(result["pairs"])
        if "correlations" in result and len(runs) > 1:
            result["correlations"] = tables.correlations(result)
    return found


def within_rows(result: dict) -> dict:
    """The result with each clip's scores less the mean of its row: else a correlation would tell
    how rows differ, as often as they have clips."""
    means = {row: [statistics.mean(column) for column in zip(*(
        scores for name, _, _, scores in result["clips"] if name == row))]
        for row in result["rows"]}
    return result | {"clips": [
        [row, group, prompt, [score - mean for score, mean in zip(scores, means[row])]]
        for row, group, prompt, scores in result["clips"]]}


def section(title: str, result: dict, runs: list[dict], kept: Path) -> list[str]:
    """Lines of the page."""
    lines = [f"## {title}", ""]
    for run in runs:
        took = ", ".join(f"{kind} {seconds:,.0f}" for kind, seconds in run["seconds"].items())
        lines += [f"    {run['command']}", "", f"Seconds of one process: {took}.", ""]
    name = result["name"]
    if "pairs" in result:
        pictures = sorted(file.name for file in kept.glob(f"{name}-seed-*.png"))
        lines += [f"{len(result['pairs'])} pairs; the paper has {probe.NUMBER}.", "",
                  probe.table(result), ""]
        return [*lines, *(f"![{title}]({kept.name}/{each})" for each in pictures), ""]
    groups = {group for _, group, _, _ in result["clips"]}
    counts = Counter(row for row, *_ in result["clips"])
    few = [f"*{row}* {n}" for row, n in counts.items() if n < max(counts.values())]
    per_row, compared = len(result["clips"]) // len(result["rows"]), name in tables.PAPER
    lines += [f"{len(result['clips'])} clips"
              + (f", {per_row} a row (the paper has {PAPER_CLIPS})," if compared else "")
              + f" of {len(groups)} groups; 95% intervals over the groups"
              + ("; in brackets the paper's figure." if compared else "."),
              "", tables.text(result), ""]
    if few:
        lines += [f"Rows of fewer than {max(counts.values())} clips: {', '.join(few)}.", ""]
    if "motion fidelity" in result["metrics"]:
        lines += [tables.unfollowed_text(result), ""]
    if name in tables.PAPER and {*tables.TRUTHS} <= {*result["metrics"]}:
        lines += ["How each metric goes along with the truth, over these clips, less the mean of "
                  "their row:", "", tables.correlation_text(
                      {"correlations": tables.correlations(within_rows(result))}), ""]
    elif "correlations" in result:
        lines += ["How each metric goes along with the truth, over these clips:", "",
                  tables.correlation_text(result), ""]
    if found := tables.verdicts(result):
        lines += ["Does it agree with the paper?", "", *(f"- {each}" for each in found), ""]
    draw_dots({metric: {row: interval(tables.means(result, row, metric)) for row in result["rows"]}
               for metric in result["metrics"]}, title, kept / f"{name}.png")
    return [*lines, f"![{title}]({kept.name}/{name}.png)", ""]


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--made", type=Path, metavar="FOLDER",
                        help=f"default: {OUTPUT}, if it is there")
    parser.add_argument("--kept", type=Path, default=KEPT, metavar="FOLDER")
    args = parser.parse_args()
    kept = Path(os.path.abspath(args.kept))     # "." has a name, too
    if args.made is not None and not args.made.is_dir():
        raise UserError(f"--made {args.made}: no such folder")
    evaluation_package("matplotlib")
    files = files_of(Path(os.path.abspath(args.made or OUTPUT)), kept)
    found = read_results(files)
    if not found:
        raise UserError(f"{kept}: no results there; make some, for example with "
                        f"python -m customttt.paper.probe subject")
    copy(files.values(), kept)
    lines = ["# Results", "", "Made by `python -m customttt.paper.results` from the files beside "
             "it, each by the command above its table; all trainings of one have its seed. Where the "
             "judge is not the paper's CLIP, scores are of another scale: the sizes of "
             "differences say little beside the paper's, the signs more. The paper prints no "
             "intervals, so its own small differences may be chance.", ""]
    for name in sorted(found, key=lambda name: [*TITLES, name].index(name)):
        lines += section(TITLES.get(name, name), *found[name], kept)
    page = kept.with_name(f"{kept.name}.md")
    with writing(page) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    print(f"written: {page}")


if __name__ == "__main__":
    run_command(main)

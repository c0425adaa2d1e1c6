"""The benchmark tool at small sizes: every row runs on both sides, and the table is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import ABOUT

ROOT = Path(__file__).resolve().parent.parent


def benchmarks(*flags):
    return subprocess.run([sys.executable, "-m", "tests.benchmarks", *map(str, flags)], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.mark.parametrize("row", [row for row in ABOUT if row != "tiny"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_is_measured_and_written(tmp_path, row, precision):
    table = tmp_path / "performance.md"
    table.write_text("before\n")
    flags = ("--small", "--rounds", 1, "--device", "cpu", "--precision", precision)
    ended = benchmarks(row, *flags, "--output", table, "--before", ROOT)
    assert ended.returncode == 0, ended.stderr
    text = table.read_text()
    assert text.startswith("before\n") and f"<!-- measured: cpu {precision} -->" in text
    [line] = [line for line in text.splitlines() if line.startswith(f"| {ABOUT[row]} |")]
    figures = [cell.strip().rstrip("%") for cell in line.strip("|").split("|")[1:]]
    assert all(float(figure) > 0 for figure in figures[:8])
    again = benchmarks(row, *flags, "--output", table)
    assert again.returncode == 0 and table.read_text().count(ABOUT[row]) == 1


def test_bad_input_is_a_sentence(tmp_path):
    for flags, said in ((["backward"], "no row of the benchmark"),
                        (["forward", "--output", tmp_path / "none.md"], "no such file")):
        ended = benchmarks(*flags)
        assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr

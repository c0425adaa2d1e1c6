"""The page of results is made of the files alone, and says what the paper says beside it."""

import json
import sys

import pytest
import torch
from PIL import Image

from customttt.errors import UserError
from customttt.paper import probe, results, tables
from customttt.paper.cache import write_result

pytest.importorskip("matplotlib")


def table_4(seed, shift):
    """Three groups of one prompt; the second row is `shift` above the first."""
    rows = {tables.AS_THEY_ARE: 0.0, "5 reference steps": shift}
    return {"name": "table-4", "seed": seed, "rows": list(rows), "metrics": ["CLIP-T", "CLIP-I",
            "consistency", "motion fidelity", "true motion"],
            "differences": [["5 reference steps", tables.AS_THEY_ARE]],
            "clips": [[row, group, "a prompt", [0.3 + k / 10 + more] * 5]
                      for row, more in rows.items() for k, group in enumerate("abc")]}


@pytest.fixture
def page(tmp_path, monkeypatch):
    def page():
        monkeypatch.setattr(sys, "argv", ["results", "--made", str(tmp_path / "made"), "--kept",
                                          str(tmp_path / "docs/results")])
        results.main()
        return (tmp_path / "docs/results.md").read_text()
    return page


def test_a_pair_of_two_seeds_counts_once_and_two_judges_are_not_one_table(tmp_path, page):
    def write(judges):
        for seed, judge in enumerate(judges):
            scores = {name: [0.2 + seed / 10, 0.1] for name in probe.conditions(6)}
            write_result({"name": "probe-subject", "seed": seed, "kind": "subject", "first": 6,
                          "scored with": {"judge": judge}, "pairs": [[["a cat", "a dog"], scores]]},
                         tmp_path / "made", "customttt.paper.probe", [])
    write("aaa")
    written = page()
    assert "1 pairs; the paper has 100." in written and "| none | 0.3000 | +0.0000 |" in written
    write("ab")
    with pytest.raises(UserError, match="\"scored with\" is not that of the other seeds'"):
        page()


def test_correlations_of_two_seeds_are_those_of_all_clips(tmp_path, page):
    for seed in (0, 1):
        clips = [["truth", group, "a prompt", [k + seed * k ** 2, k, -k]]
                 for k, group in enumerate("abcdef")]
        result = {"name": "metrics", "seed": seed, "rows": ["truth"], "differences": [],
                  "metrics": ["CLIP-T", "true identity", "true motion"]}
        result |= {"correlations": tables.correlations(result | {"clips": clips}), "clips": clips}
        write_result(result, tmp_path / "made", "customttt.tiny.study.metrics", [])
    both = [[0, 1, 2, 3, 4, 5, 0, 2, 6, 12, 20, 30], [0, 1, 2, 3, 4, 5] * 2]
    together = torch.corrcoef(torch.tensor(both, dtype=torch.float32))[0, 1]
    assert f"| CLIP-T | {together:+.2f} [" in page()


def test_correlations_are_within_rows(tmp_path, page):
    """Of two rows that differ by more than their clips do, and in whose clips the two agree."""
    clips = [[row, group, "a prompt", [k + shift, k - shift, k]] for row, shift in (
        (tables.AS_THEY_ARE, 0), ("5 reference steps", 100)) for k, group in enumerate("abcdef")]
    write_result({"name": "table-4", "seed": 0, "rows": [tables.AS_THEY_ARE, "5 reference steps"],
                  "differences": [], "metrics": ["CLIP-T", *tables.TRUTHS], "clips": clips},
                 tmp_path / "made", "customttt.paper.tables", [])
    written = page()
    assert "less the mean of their row" in written and "| CLIP-T | +1.00 [" in written


def test_the_page(tmp_path, page, monkeypatch):
    made, kept = tmp_path / "made", tmp_path / "docs/results"
    with pytest.raises(UserError, match="--made .*made: no such folder"):
        page()
    made.mkdir()
    with pytest.raises(UserError, match="no results there; make some"):
        page()
    scores = {name: [0.2 + len(layers) / 100, 0.1] for name, layers in probe.conditions(6).items()}
    monkeypatch.setattr(sys, "argv", ["probe", "subject", "--number", "1"])
    write_result({"name": "probe-subject", "seed": 0, "kind": "subject", "first": 6,
                  "pairs": [[["a cat", "a dog"], scores]]}, made, "customttt.paper.probe", [])
    Image.new("RGB", (8, 8)).save(made / "probe-subject-seed-0-heat-CLIP-T.png")
    write_result(table_4(0, 0.01) | {"name": "search-joined"}, made, "customttt.tiny.study.search", [])
    for seed, shift in ((0, 0.01), (1, 0.03)):
        monkeypatch.setattr(sys, "argv", ["tables", "4", "--seed", str(seed)])
        write_result(table_4(seed, shift), made, "customttt.paper.tables", [])
    written = page()
    assert "    python -m customttt.paper.tables 4 --seed 1\n" in written
    # Two seeds of a group are one number; the true motion is not the paper's.
    assert f"| {tables.AS_THEY_ARE} | 0.400 ± 0.248 (0.295) | " in written
    assert "12 clips, 6 a row (the paper has 50), of 3 groups" in written
    assert "| +0.020 ± 0.000 |\n" in written.replace("+0.020 ± 0.000 (+0.020)", "")
    said = "CLIP-T, *5 reference steps* minus *without test-time training*: +0.013 in the paper, "
    assert f"- {said}+0.020 ± 0.000 here: the paper's sign, but its size is outside the interval.\n" in written
    assert "| 6 | 0.2100 | +0.0100 | 0.200 |" in written
    assert written.index("Table 2, Figure 1") < written.index("## Table 4")
    assert written.count("motion fidelity is 0: none.\n") == 1
    assert "search-joined" not in written and not list(kept.glob("search*"))
    for picture in ("probe-subject-seed-0-heat-CLIP-T.png", "table-4.png"):
        assert (kept / picture).exists() and f"](results/{picture})" in written

    for file in made.iterdir():                 # the kept files are enough
        file.unlink()
    assert page() == written
    other = json.loads((kept / "table-4-seed-1.json").read_text())
    for key, value in (("metrics", ["CLIP-T"]), ("made of", {"model": "another", "seed": 1})):
        (kept / "table-4-seed-1.json").write_text(json.dumps(other | {key: value}))
        with pytest.raises(UserError, match=f"table-4-seed-1.json: \"{key}\" is not that of the"):
            page()
    (kept / "table-4-seed-1.json").write_text(json.dumps(other))
    for damaged in ("table-4-seed-1.json", "table-4-seed-1.run.json"):
        (made / damaged).write_text("{}")
        with pytest.raises(UserError, match="table-4-seed-1.json: not a result that tables.py"):
            page()
        (made / damaged).unlink()
        assert json.loads((kept / damaged).read_text()) and page() == written


def test_a_trial_that_replaces_a_result_is_said(tmp_path, page):
    made, whole = tmp_path / "made", table_4(0, 0.1)
    write_result(whole, made, "customttt.paper.tables", [])
    page()
    page()                  # the same once more: nothing to say
    for trial, said in ((whole | {"clips": whole["clips"][::3]}, "fewer clips or pairs"),
                        ({"made of": {"steps": 2}} | whole, "other 'made of'")):
        write_result(trial, made, "customttt.paper.tables", [])
        with pytest.warns(UserWarning, match=f"table-4-seed-0.json: replaced by .* {said}"):
            page()

"""The documents name files and functions that exist, and the recipe has the paper's numbers."""

import re
from pathlib import Path

import pytest

from customttt.recipes import SAMPLING
from customttt.stages import STAGES

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "weights" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"`((?:customttt|tests|weights|docs)/[\w/.-]+\.\w+|(?:train|sample)\.py)`")


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_files_named_in_backticks_exist(doc):
    for name in FILE.findall(doc.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{doc.name} names {name}"


def test_functions_named_in_the_method_exist():
    """Every `name` that follows a file's name on its line is defined in that file."""
    found = 0
    for line in (ROOT / "docs" / "method.md").read_text(encoding="utf-8").splitlines():
        file = None
        for quoted in re.findall(r"`([^`]+)`", line):
            if FILE.fullmatch(f"`{quoted}`"):
                file = ROOT / quoted
            elif file is not None and re.fullmatch(r"[A-Za-z_]+", quoted):
                defined = rf"^\s*(def|class) {quoted}\b|^\s*\"?{quoted}\"?\b.*[=:]"
                text = file.read_text(encoding="utf-8")
                assert re.search(defined, text, re.MULTILINE), f"{file.name} has no {quoted}"
                found += 1
    assert found > 25


@pytest.mark.parametrize("stage, key, value", [
    ("spatial", "steps", 500), ("spatial", "learning_rate", 1e-5),
    ("temporal", "steps", 500), ("temporal", "learning_rate", 5e-5),
    ("ttt", "steps", 30), ("ttt", "learning_rate", 1e-6), ("ttt", "reference_steps", 5),
    ("spatial", "spatial_layers", (2, 6)), ("temporal", "temporal_layers", (2, 5)),
    *((stage, "rank", 32) for stage in ("spatial", "temporal")),
    *((stage, key, value) for stage in STAGES for key, value in
      (("dropout", 0.1), ("betas", (0.9, 0.99)), ("weight_decay", 0.1))),
    *(("sampling", key, value) for key, value in (("sampling_steps", 25), ("guidance", 9.0),
      ("frames", 16), ("size", 256), ("fps", 8.0)))])
def test_the_recipe_has_the_supplements_numbers(stage, key, value):
    recipe = SAMPLING if stage == "sampling" else STAGES[stage].recipe
    setting = recipe.full[key]
    assert setting.value == value and setting.source.startswith("supplement")


def test_no_document_or_source_names_a_path_of_one_machine():
    sources = [*ROOT.glob("customttt/**/*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("*.py")]
    for path in [*DOCS, *sources]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|Users|work)/\w", text), path

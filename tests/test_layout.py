"""Imports run downwards, without circles, and to six packages at most."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom; a file may import from its own row and from those before it.
ROWS = [("errors",), ("model",), ("media",), ("diffusion", "draws", "losses", "lion", "lora"),
        ("files",), ("sampling", "recipes"), ("stages", "run"), ("paper",), ("tiny.world",),
        ("tiny.pretraining",), ("tiny.study",)]
PACKAGES = {"torch", "einops", "safetensors", "PIL", "av", "tqdm"}
SOURCES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in [*ROOT.glob("customttt/**/*.py"), ROOT / "train.py", ROOT / "sample.py"]}


def imported(name):
    """The full names of all modules that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                is_package = SOURCES[name].name == "__init__.py"
                above = name.split(".")[:len(name.split(".")) + is_package - node.level]
                module = ".".join([*above, *filter(None, [module])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in SOURCES else module)
    return found


GRAPH = {name: imported(name) for name in SOURCES}


def row(name):
    """How high a module stands; train.py and sample.py on top, with the package's public names."""
    inner = name.removeprefix("customttt.")
    rows = [i for i, names in enumerate(ROWS)
            if any(f"{inner}.".startswith(f"{each}.") for each in names)]
    if name in ("customttt", "customttt.tiny", "train", "sample"):
        rows = [len(ROWS)]
    assert rows, f"{name} stands in no row: give it one in {Path(__file__).name}"
    return rows[0]


@pytest.mark.parametrize("name", SOURCES)
def test_imports_run_downwards(name):
    for other in GRAPH[name] & SOURCES.keys():
        assert row(other) <= row(name), f"{name} imports {other}, which stands above it"


def test_no_circle():
    """Modules whose imports are all taken away are taken away; a circle is what would stay."""
    left = {name: others & SOURCES.keys() for name, others in GRAPH.items()}
    while bottom := [name for name, others in left.items() if not others & left.keys()]:
        for name in bottom:
            del left[name]
    assert not left


def test_only_the_six_packages():
    packages = {name.split(".")[0] for others in GRAPH.values() for name in others}
    assert packages - sys.stdlib_module_names - {"customttt"} == PACKAGES


def test_the_graph_is_seen():
    """Each way of writing an import."""
    assert "customttt.model.blocks" in GRAPH["customttt.model.unet"]            # from .blocks
    assert "customttt.files.keys" in GRAPH["customttt.files.load"]              # from . import
    assert "customttt.model.config" in GRAPH["customttt"]                       # from .model import
    assert "customttt.tiny.world.clips" in GRAPH["customttt.tiny.pretraining.judge"]
    assert "customttt.errors" in GRAPH["train"]                                 # from customttt.

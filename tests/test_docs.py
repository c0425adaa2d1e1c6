"""What the documents name exists, is where they say, and has the value that they say."""

import ast
import re
from pathlib import Path

import pytest

from customttt.recipes import SAMPLING
from customttt.stages import STAGES

ROOT = Path(__file__).parent.parent
DOCS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in
        [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("weights/**/*.md")]}
SHIPPED = [*ROOT.glob("customttt/**/*.py"), ROOT / "train.py", ROOT / "sample.py"]
SOURCES = [*SHIPPED, *ROOT.glob("tests/**/*.py")]
FILE = r"(?:customttt|tests|docs|weights/tiny)/[\w./-]*|weights/README\.md|(?:train|sample)\.py"
NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
ENDING = r".*\.(?:safetensors|ckpt|bin|txt|json|jsonl|png|mp4|md)"        # of a file, not of a name
# What is not ours to define: names and flags of other programs.
FOREIGN = {"torch.compile": "PyTorch", "channels_last": "PyTorch", "torchrun": "PyTorch",
           "load_lora_weights": "diffusers", "save_lora_weights": "diffusers",
           "save_lora_adapter": "diffusers", "processor.to_q_lora": "a key of diffusers",
           "adapter_lora_path": "guoyww/AnimateDiff", "motion_module_lora_configs": "the same",
           "variant": "diffusers", "alphas_cumprod": "a key of Stable Diffusion",
           "alpha_bar_t": "a symbol"}
RECIPES = {name: stage.recipe for name, stage in STAGES.items()} | {"sampling": SAMPLING}
FULL = {name: {key: setting.value for key, setting in recipe.full.items()}
        for name, recipe in RECIPES.items()}
FOREIGN_FLAGS = {"--no-deps": "pip", "--nproc-per-node": "torchrun", "--standalone": "torchrun",
                 "--local-dir": "hf", "--config": "scripts/animate.py of guoyww/AnimateDiff",
                 "--pretrained-model-path": "the same"}


def spans(text):
    """What stands in back-quotes, code blocks left out; a line break in it is a space."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def defined(path):
    """The names that a source file defines: functions, classes, parameters, variables, entries."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[\w.]+", str(node.value)):
            names |= set(str(node.value).split("."))        # keys of a file or a table
    return names


def defined_flags():
    """Every flag of the shipped programs: those of their parsers, and one an entry of the recipe;
    the study has one a stage, too."""
    found = {"--" + name.replace("_", "-") for stage, settings in FULL.items()
             for name in [stage, *settings]}
    for path in [*SHIPPED, *ROOT.glob("tests/*/__main__.py"), ROOT / "tests/benchmarks/kept.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found | {"--no-" + flag.removeprefix("--") for flag in found} | {"--help"}


KNOWN_NAMES = {path.stem for path in SOURCES}.union(*map(defined, SOURCES))
KNOWN_FLAGS = defined_flags() | FOREIGN_FLAGS.keys()


@pytest.mark.parametrize("doc", DOCS)
def test_files_exist(doc):
    named = re.findall(rf"(?<![\w/.-])(?:{FILE})", DOCS[doc])
    assert not [name for name in named if not (ROOT / name.rstrip(".")).exists()]


@pytest.mark.parametrize("doc", DOCS)
def test_commands_exist(doc):
    for module in re.findall(r"python -m (customttt[\w.]*)", DOCS[doc]):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), \
            f"{doc} runs python -m {module}"


@pytest.mark.parametrize("doc", DOCS)
def test_flags_exist(doc):
    assert not set(re.findall(r"(?<![\w-])--[a-z][\w-]*", DOCS[doc])) - KNOWN_FLAGS


@pytest.mark.parametrize("doc", DOCS)
def test_names_are_defined(doc):
    """Every `name`, `module.name` and `name(...)` that is not somebody else's."""
    named = {re.sub(r"\(.*\)$|=.*", "", span) for span in spans(DOCS[doc])} - FOREIGN.keys()
    assert not [name for name in named if re.fullmatch(NAME, name)
                and not re.fullmatch(ENDING, name) and set(name.split(".")) - KNOWN_NAMES]


def test_names_are_where_the_documents_say():
    """Every `name` that follows a file's name on its line is defined in that file."""
    said = set()
    for line in "\n".join(DOCS.values()).splitlines():
        file = None
        for span in spans(line):
            if re.fullmatch(FILE, span):
                file = span
            elif file and file.endswith(".py") and re.fullmatch(r"[A-Za-z_]+", span):
                said.add((file, span))
    assert len(said) > 20
    assert not [f"{name} in {file}" for file, name in said if name not in defined(ROOT / file)]


# ------------------------------------------------------------------ values

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
    setting = RECIPES[stage].full[key]
    assert setting.value == value and setting.source.startswith("supplement")


def rows(column):
    """The cells in that column of every table in the documents that has it, each with its row."""
    for text in DOCS.values():
        at = None
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")] if line[:1] == "|" else []
            if column in cells:
                at = cells.index(column)
            elif not cells:
                at = None
            elif at is not None and not set(line) <= set("|-: "):
                yield cells[at], line


def numbers(values):
    """All numbers among the values of a recipe, those in tuples too."""
    flat = [each for value in values for each in (value if isinstance(value, tuple) else [value])]
    return {float(each) for each in flat if isinstance(each, (int, float))}


def test_the_supplements_numbers_are_in_the_recipe_that_the_row_names():
    """"spatial LoRA: learning rate 1e-5, 500 steps": numbers of the spatial stage, and so on."""
    stages = {"spatial LoRA": "spatial", "temporal LoRA": "temporal", "test-time training": "ttt"}
    checked = 0
    for said, row in rows("the supplement says"):
        if "recipes.py" not in row:
            continue
        named = [stage for words, stage in stages.items() if said.startswith(words)] or FULL
        allowed = numbers(value for stage in named for value in FULL[stage].values())
        for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", said):
            assert float(number) in allowed, f"{number} is not in the recipe: {row}"
            checked += 1
    assert checked > 10


def shown(value):
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else f"{value:g}"


def test_the_defaults_of_the_open_choices_are_the_recipes():
    """A default that names its flag is what the recipe has: "9 (`--guidance`)", "`--noise one`"."""
    checked = 0
    for default, row in rows("default here"):
        for flag, value in re.findall(r"`--(?:no-)?([\w-]+) ?([^`]*)`", default):
            key = flag.replace("-", "_")
            values = {shown(settings[key]) for settings in FULL.values() if key in settings}
            if values:
                assert (value or default.split()[0].rstrip(",")) in values, row
                checked += 1
    assert checked > 4


def test_no_document_or_source_names_a_path_of_one_machine():
    texts = DOCS | {str(path): path.read_text(encoding="utf-8") for path in SOURCES}
    for name, text in texts.items():
        assert not re.search(r"/(home|root|Users|work)/\w", text), name

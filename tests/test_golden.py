"""Golden numbers of the default commands: what the tiny model and the recipe give, end to end.

They change when the weights, the recipe, the examples or the order of the random draws do; then
look at the sheets, and put the numbers that this test prints.
"""

import json

import pytest
from conftest import TINY
from safetensors.torch import load_file

from test_commands import finished, program
from test_media import pages

STEPS = {"spatial": 5, "temporal": 3, "ttt": 2}     # of 500, 250 and 30
GOLDEN = {
    "spatial, mean loss": 0.0816592,
    "spatial, norm of the LoRA's up": 0.271895,
    "temporal, mean loss": 0.00309919,
    "temporal, norm of the LoRA's up": 0.65328,
    "ttt, mean loss": 0.00944864,
    "ttt, norm of the LoRA's up": 0.70726,
    "mean of the sample's pixels": 143.766,
}


def test_the_default_commands_give_the_golden_numbers(tmp_path, capsys):
    (tmp_path / "weights").symlink_to(TINY.parent)
    numbers = {}
    for stage, steps in STEPS.items():
        finished(program("train.py", "--stage", stage, "--steps", steps, "--sheet-every", 0,
                         folder=tmp_path))
        folder = tmp_path / "output" / stage
        losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]
        numbers[f"{stage}, mean loss"] = sum(losses) / steps
        numbers[f"{stage}, norm of the LoRA's up"] = sum(
            tensor.square().sum().item() for key, tensor in
            load_file(folder / "adapter.safetensors").items() if "lora_up" in key) ** 0.5
    finished(program("sample.py", "--output", "sheet.png", folder=tmp_path))
    numbers["mean of the sample's pixels"] = pages(tmp_path / "sheet.png")[0].float().mean().item()
    with capsys.disabled():
        print("\n" + "\n".join(f'    "{key}": {value:.6g},' for key, value in numbers.items()))
    assert numbers == pytest.approx(GOLDEN, rel=1e-3)

"""Fixtures: the embedded tiny model. `pytest -m "not full_size"` leaves out the slow checks."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from customttt.model import load_model


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The embedded tiny model: to be read, not to be written to."""
    return Path(__file__).resolve().parent.parent / "weights" / "tiny"


@pytest.fixture
def model(model_folder):
    """The same in memory, a fresh one for each test."""
    return load_model(model_folder)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """||ours - theirs|| / ||theirs||, printed."""
    error = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"relative error {error:.1e}")
    return error

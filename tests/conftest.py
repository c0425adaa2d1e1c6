"""Fixtures: small random models. `pytest -m "not full_size"` leaves out the slow checks."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from customttt.random_model import random_model
from customttt.save import save_model


@pytest.fixture
def model():
    """A small model with random weights, a fresh one for each test."""
    return random_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The same, written as a model folder in fp32."""
    folder = tmp_path_factory.mktemp("models") / "random"
    save_model(random_model(), folder, torch.float32)
    return folder


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """||ours - theirs|| / ||theirs||, printed."""
    error = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"relative error {error:.1e}")
    return error

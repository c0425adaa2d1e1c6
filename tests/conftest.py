"""Fixtures: the embedded tiny model. `pytest -m "not full_size"` leaves out the slow checks.

Two processes of one thread take whole files in turn (setup.cfg); the full-size checks are in one
file, so that their memory is needed once. `-n 0` stays in this process.
"""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""     # commands take a GPU; what is expected is a CPU's
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from customttt.files.load import load_model


TINY = Path(__file__).resolve().parent.parent / "weights" / "tiny"


def tiny_model():
    """The embedded tiny model in memory, a fresh one for each call."""
    return load_model(TINY)


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """Of the embedded tiny model: to be read, not to be written to."""
    return TINY


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """||ours - theirs|| / ||theirs||, printed."""
    error = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"relative error {error:.1e}")
    return error

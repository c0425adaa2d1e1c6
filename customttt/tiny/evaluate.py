"""Score the tiny model, on seeds that training never drew from, with 95% intervals.

    python -m customttt.tiny.evaluate clip|vae|unet|motion --model weights/tiny

clip: the image's own caption against those with another subject, colour or scene, on real frames.
vae: the same choices on reconstructed frames, and the reconstructions' error.
unet: the same choices on sampled images, each with a caption drawn at random.
motion: subject and scene by CLIP, and the motion measured from the frames, on sampled clips.
"""

import argparse
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from ..errors import run
from ..images import save_contact_sheet
from ..model import load_model
from . import world
from .judge import choose
from .measure import classify_motion
from .parts import load_clip, load_vae

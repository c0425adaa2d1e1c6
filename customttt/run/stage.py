"""What train.py and the loop need to know of a stage: one object each."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from ..files.lora_files import save_lora
from ..lion import Lion
from ..lora import lora_parameters
from ..model.model import Model
from ..recipes import Recipe


@dataclass
class Job:
    """A stage made ready: what its step learns from, and what is said about it."""

    inputs: tuple           # of the step, between the UNet and the settings
    prompt: str             # of the contact sheet; what the LoRA file says it is for
    metadata: dict          # of the LoRA file
    data: Tensor | None = None      # uint8 (n H W 3), what is learned from as the model sees it:
                                    # data.png, a row of squares
    above: list[Tensor] = field(default_factory=list)   # uint8 (f H W 3): rows above the sheet's


@dataclass(frozen=True)
class Stage:
    """A stage. A further one is one more of these, in a file of its own; one that trains
    other modules than LoRA, or has several rates or another optimizer, is of a subclass."""

    name: str                               # of --stage
    kind: str                               # what its LoRA file says it holds
    recipe: Recipe
    add_flags: Callable[[ArgumentParser], None]         # those beside the recipe's
    prepare: Callable[[Model, dict, Namespace], Job]    # puts what is trained on the model
    step: Callable[..., object]             # (unet, *job.inputs, settings, draw, backward)
    trained: tuple[str, ...]                # names of the LoRAs
    rows: tuple[tuple[str, ...], ...]       # of its contact sheet: the LoRAs that are on in each
    motion: bool = True                     # False: motion modules are not loaded
    optimizer_class: ClassVar[type[Optimizer]] = Lion

    def parameters(self, model: Model) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return lora_parameters(model.unet, *self.trained)

    def groups(self, parameters: dict[str, nn.Parameter], settings: dict) -> list[dict]:
        """What the optimizer gets: the parameters, by learning rate where they have several."""
        return [{"params": list(parameters.values())}]

    def optimizer(self, parameters: dict[str, nn.Parameter], settings: dict) -> Optimizer:
        return self.optimizer_class(
            self.groups(parameters, settings), settings["learning_rate"], betas=settings["betas"],
            weight_decay=settings["weight_decay"])

    def save(self, model: Model, path: Path, metadata: dict) -> None:
        save_lora(model.unet, path, metadata, self.trained)


def train_only(unet: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """These alone get gradients; all else of the UNet is frozen."""
    unet.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)

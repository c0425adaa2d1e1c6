"""LoRA (Hu et al. 2021) on the layers that matter: y = W x + scale * up(down(x)).

"spatial" adapts the spatial transformers (the paper's W_s), "temporal" the motion modules (W_t);
`layers` are the paper's indices i = 0..8. A module may hold several LoRAs by name (teacher and
student share one UNet), and `with lora_on(unet, "spatial"):` says at the call which of them are on.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .errors import UserError
from .model.unet import UNet

PLACES = {"spatial": "spatial_transformers", "temporal": "motion_modules"}


class LoRA(nn.Module):
    """One low-rank update of one Linear or convolution: scale * up(down(x)). Its weights are fp32.

    Down starts normal with standard deviation 1 / rank, up at zero, so a fresh LoRA changes
    nothing. Dropout is on the update. Both as in AnimateDiff-MotionDirector (docs/method.md).
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, dropout: float, scale: float = 1.0):
        super().__init__()
        if isinstance(base, nn.Conv2d):
            self.down = nn.Conv2d(base.in_channels, rank, base.kernel_size, base.stride,
                                  base.padding, bias=False)
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self.to(base.weight.device, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.dropout(self.up(self.down(x.to(self.down.weight.dtype))))

    def delta(self) -> Tensor:
        """scale * up @ down, in the shape of the base weight, fp32."""
        up, down = self.up.weight.float(), self.down.weight.float()
        return self.scale * (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


class WithLoRA(nn.Module):
    """A Linear or convolution and its LoRAs; `on` names those whose update is added."""

    def __init__(self, base: nn.Linear | nn.Conv2d):
        super().__init__()
        self.base = base
        self.loras = nn.ModuleDict()
        self.on: set[str] = set()

    @property
    def weight(self) -> Tensor:
        """The base's: the layers around ask whether it is frozen."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for name in sorted(self.on):
            y = y + self.loras[name](x).to(y.dtype)
        return y


def targets(unet: UNet, kind: str, layers: Sequence[int], convolutions: bool = False) -> list[str]:
    """Names of the modules that `kind` adapts in `layers`: every Linear inside the transformer
    blocks (q, k, v, out of both attentions, both of the feed-forward).

    `convolutions` adds proj_in and proj_out of the spatial transformers (1x1 convolutions).
    Raises UserError for a layer where there is nothing to adapt.
    """
    if kind not in PLACES:
        raise UserError(f"LoRA kind {kind!r}: it is 'spatial' or 'temporal'")
    names = []
    for i in layers:
        if i not in range(len(unet.layers)):
            raise UserError(f"--{kind}-layers: LoRA layer {i}: layers are counted 0 to "
                            f"{len(unet.layers) - 1}")
        modules = getattr(unet.layers[i], PLACES[kind])
        if not len(modules):
            there = ", ".join(str(j) for j, layer in enumerate(unet.layers)
                              if len(getattr(layer, PLACES[kind])))
            raise UserError(f"--{kind}-layers: LoRA layer {i}: it has no "
                            f"{PLACES[kind].replace('_', ' ')} to adapt; {kind} layers here are "
                            f"{there or 'none: no motion module is loaded'}")
        for name, module in modules.named_modules():
            if ".base" in name or ".loras" in name:     # inside a wrapper
                continue
            is_projection = kind == "spatial" and name.endswith((".proj_in", ".proj_out"))
            if (".block." in name and isinstance(module, (nn.Linear, WithLoRA))
                    or convolutions and is_projection):
                names.append(f"layers.{i}.{PLACES[kind]}.{name}")
    return names


def add_lora(unet: UNet, kind: str, layers: Sequence[int], rank: int = 32, dropout: float = 0.1,
             name: str | None = None, convolutions: bool = False) -> list[nn.Parameter]:
    """Put a fresh LoRA called `name` (default: `kind`) on the targets, switched on.

    Returns its parameters, the ones to train; freezing the others is the caller's. Raises UserError
    for a layer with nothing to adapt, ValueError for a name that is taken or cannot be one.
    """
    name = kind if name is None else name
    found = dict.fromkeys(targets(unet, kind, layers, convolutions))
    check_name(unet, found, name)
    return [parameter for target in found
            for parameter in put_lora(unet, target, name, rank, dropout).parameters()]


def check_name(module: nn.Module, found: Iterable[str], name: str) -> None:
    """Raise ValueError, before anything is put on the submodules `found`, where one of them has a
    LoRA of that name, or none can have it."""
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"{name!r} cannot be the name of a LoRA: it has a dot, or is a word of "
                         f"PyTorch's own; give another")
    for target in found:
        if name in getattr(module.get_submodule(target), "loras", ()):
            raise ValueError(f"{target} has a LoRA {name!r} already: give this one another name")


def put_lora(module: nn.Module, target: str, name: str, rank: int, dropout: float = 0.0,
             scale: float = 1.0) -> LoRA:
    """Put a LoRA called `name` on the submodule `target`, wrapped if it is not yet, and on.
    Raises ValueError as `check_name` does."""
    check_name(module, [target], name)
    owner, _, leaf = target.rpartition(".")
    there = module.get_submodule(target)
    wrapper = there if isinstance(there, WithLoRA) else WithLoRA(there)
    lora = LoRA(wrapper.base, rank, dropout, scale)
    wrapper.loras[name] = lora.train(wrapper.base.training)     # no dropout in one that samples
    wrapper.on.add(name)
    setattr(module.get_submodule(owner), leaf, wrapper)
    return lora


def wrapped(module: nn.Module) -> Iterator[tuple[str, WithLoRA]]:
    """(its name, the wrapper) of every Linear and convolution that holds LoRAs."""
    return ((name, each) for name, each in module.named_modules() if isinstance(each, WithLoRA))


def lora_parameters(module: nn.Module, *names: str) -> dict[str, nn.Parameter]:
    """The parameters of the LoRAs of these names."""
    return {f"{target}.{name}.{part}": parameter for target, wrapper in wrapped(module)
            for name in names if name in wrapper.loras
            for part, parameter in wrapper.loras[name].named_parameters()}


@contextlib.contextmanager
def lora_on(unet: nn.Module, *names: str) -> Iterator[None]:
    """Inside the `with`, exactly the LoRAs of these names are on, in each module those that it has.
    A name that no module has is no error, and adds nothing.

    It is the UNet's state: not for two threads or two generators by turns, and LoRAs are put on
    before it."""
    wrappers = [wrapper for _, wrapper in wrapped(unet)]
    before = [wrapper.on for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.on = {name for name in names if name in wrapper.loras}
    try:
        yield
    finally:
        for wrapper, on in zip(wrappers, before):
            wrapper.on = on


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    """W <- W + scale * up @ down for all LoRAs that are on; the modules become plain again,
    and the LoRAs that are off are dropped."""
    for target, wrapper in list(wrapped(module)):
        base, (owner, _, leaf) = wrapper.base, target.rpartition(".")
        update = sum(wrapper.loras[name].delta() for name in sorted(wrapper.on))
        weight = (base.weight.float() + update).to(base.weight.dtype)
        base.weight = nn.Parameter(weight, requires_grad=False)
        setattr(module.get_submodule(owner), leaf, base)

"""What frozen layers keep for the backward pass: less, with the same gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from customttt.files.random_model import random_model
from customttt.lora import add_lora
from customttt.model import blocks, frozen
from customttt.model.blocks import FeedForward, Linear, ResNet
from customttt.model.frozen import Conv2d


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make_all_large(monkeypatch) -> None:
    """As at full size: everything is large, a feed-forward takes its tokens in parts, and attention
    along time is plain products."""
    monkeypatch.setattr(frozen, "LARGE", 0)
    monkeypatch.setattr(blocks, "PART", 3)
    monkeypatch.setattr(blocks, "MANY", 0)


def kept(function, x: torch.Tensor) -> int:
    """Bytes that function(x) keeps for the backward pass, its own parameters aside."""
    seen = {}
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: seen.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t):
        y = function(x)
    weights = {p.data_ptr() for p in getattr(function, "parameters", list)()}
    assert y.requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in seen.items()
               if pointer not in weights)


@pytest.mark.parametrize("arguments", [{}, {"stride": 2, "padding": 1}, {"padding": 1}])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_frozen_convolution_keeps_nothing_and_has_the_same_gradient(kernel, arguments):
    ours = Conv2d(3, 5, kernel, **arguments).double().requires_grad_(False)
    plain = nn.Conv2d(3, 5, kernel, **arguments).double().requires_grad_(False)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(ours(x), plain(x)) and gradcheck(ours, x)
    gradient = torch.randn_like(plain(x))
    assert torch.allclose(*(torch.autograd.grad(conv(x), x, gradient)[0] for conv in (ours, plain)),
                          rtol=1e-12, atol=1e-12)
    assert kept(ours, x) == 0 and kept(plain, x) == x.nbytes


def test_a_convolution_has_no_argument_that_it_would_ignore():
    with pytest.raises(TypeError):
        Conv2d(3, 5, 3, dilation=2)


def test_a_convolution_that_is_trained_is_a_plain_one():
    conv = Conv2d(3, 5, 3)
    conv(torch.randn(1, 3, 4, 4)).sum().backward()
    assert conv.weight.grad.abs().max() > 0 and conv.bias.grad.abs().max() > 0


@pytest.mark.parametrize("rows, inputs, outputs, quick", [
    (1024, 256, 320, True), (1023, 256, 320, False), (1024, 255, 320, False),
    (1024, 256, 255, False)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_large_linear_is_a_convolution_and_the_same(
        rows, inputs, outputs, quick, bias, monkeypatch):
    linear, x, called = Linear(inputs, outputs, bias=bias), torch.randn(rows, inputs), []
    x = torch.stack([x, x], dim=1)[:, :1]       # (rows, 1, inputs), not contiguous
    conv2d = blocks.F.conv2d
    monkeypatch.setattr(blocks, "MKL", True)
    monkeypatch.setattr(blocks.F, "conv2d", lambda *of: called.append(1) or conv2d(*of))
    expected = nn.functional.linear(x, linear.weight, linear.bias).detach()
    for dtype, within in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        with torch.no_grad():
            found = linear.to(dtype)(x.to(dtype))
        assert found.shape == (rows, 1, outputs) and found.dtype == dtype
        assert (found.float() - expected).norm() < within * expected.norm()
        assert len(called) == (quick and dtype == torch.float32)
        called.clear()

    linear, whole = linear.float().requires_grad_(False), x.contiguous().requires_grad_()
    given, = torch.autograd.grad(linear(whole), whole, torch.ones(rows, 1, outputs))
    assert given.is_contiguous()        # what takes it from here need not copy it

    linear, x = linear.double(), x.double().requires_grad_()
    gradient = torch.randn(rows, 1, outputs, dtype=torch.float64)
    for trained in (False, True):
        linear.requires_grad_(trained)
        of = [x, *linear.parameters()] if trained else [x]
        plain = nn.functional.linear(x, linear.weight, linear.bias)
        for ours, theirs in zip(*(torch.autograd.grad(y, of, gradient) for y in (linear(x), plain))):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
        assert trained or kept(linear, x) == 0
    assert len(called) == (4 if quick else 0)


def test_a_large_linear_refuses_another_width():
    with torch.no_grad(), pytest.raises(RuntimeError):
        Linear(256, 256)(torch.randn(1024, 512))


@pytest.mark.parametrize("build, shape", [
    (lambda: FeedForward(8), (2, 5, 8)), (lambda: ResNet(8, 16, 4, 1e-5), (2, 8, 6, 6))])
def test_what_is_made_again_is_not_kept_and_has_the_same_gradient(build, shape, monkeypatch):
    module = build().double().requires_grad_(False)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    plain, most = module(x), kept(module, x)
    gradient = torch.randn_like(plain)
    expected, = torch.autograd.grad(plain, x, gradient)
    make_all_large(monkeypatch)
    y, least = module(x), kept(module, x)
    assert torch.allclose(y, plain, rtol=1e-12, atol=1e-12)
    assert torch.allclose(torch.autograd.grad(y, x, gradient)[0], expected, rtol=1e-12, atol=1e-12)
    assert least < 0.7 * most


@pytest.mark.parametrize("tokens", [16, 33])
def test_attention_is_the_same_where_pixels_are_many(tokens, monkeypatch):
    q, k, v = (torch.randn(3, 2, tokens, 8, dtype=torch.float64, requires_grad=True)
               for _ in range(3))
    weight, found, called = torch.randn(3, 2, tokens, 8, dtype=torch.float64), [], []
    kernel = blocks.F.scaled_dot_product_attention
    monkeypatch.setattr(blocks.F, "scaled_dot_product_attention",
                        lambda *of, **how: called.append(1) or kernel(*of, **how))
    for many in (0, 2 ** 60):
        monkeypatch.setattr(blocks, "MANY", many)
        y = blocks.attend(q, k, v)
        found.append((y, *torch.autograd.grad((y * weight).sum(), (q, k, v))))
    assert len(called) == (1 if tokens == 16 else 2)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*found))


def test_a_motion_module_gives_its_linear_a_contiguous_tensor():
    """Of another one F.linear multiplies each pixel by a copy of the weight."""
    unet, seen = random_model().unet, []
    unet.layers[0].motion_modules[0].proj_in.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].is_contiguous()))
    unet(torch.zeros(1, 4, 2, 8, 8), torch.tensor([5]), torch.zeros(1, 3, 32))
    assert seen == [True]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_has_the_same_gradients(monkeypatch, checkpointing):
    """Of all LoRAs, in float64, and without dropout (its draws come in another order)."""
    make_all_large(monkeypatch)
    unet = random_model().unet.double().requires_grad_(False).train()
    trained = [p for kind, layers in (("spatial", (2, 6)), ("temporal", (2, 5)))
               for p in add_lora(unet, kind, layers, rank=4, dropout=0.0)]
    for p in trained:
        nn.init.normal_(p.data.requires_grad_(False), std=0.2)
    unet.double()
    unet.gradient_checkpointing = checkpointing
    x, text = torch.randn(1, 4, 3, 8, 8).double(), torch.randn(1, 7, 32).double()

    def gradients():
        return torch.autograd.grad(unet(x, torch.tensor([500]), text).square().mean(), trained)
    ours = gradients()
    monkeypatch.undo()          # small again: everything is kept
    unet.gradient_checkpointing = False
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(ours, gradients()))


@pytest.mark.full_size
def test_what_a_full_size_step_keeps_is_what_the_notes_say():
    """943 MB when everything was kept (docs/performance.md)."""
    root = Path(__file__).resolve().parent.parent
    told = subprocess.run([sys.executable, "tests/benchmarks/kept.py", "temporal", "--frames", "2"],
                          cwd=root, capture_output=True, text=True, check=True).stdout
    assert 500 < int(told.split()[0]) < 560, told

"""Seeded ways to spoil a file: its bytes, its JSON, its tensors."""

import copy
import io
import json
import random
import struct
from collections.abc import Callable

import torch

ODD = [None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e308, float("nan"),
       float("inf"), 2 ** 31, -2 ** 31, 2 ** 40, 2 ** 63, 10 ** 30, "", "x", "\ud800", "None",
       "320", [], [[]], {}, [1], [0] * 4, [-1] * 4, [2 ** 40] * 4, ["a"] * 4, [320.0] * 4, {"a": 1},
       [None] * 4, "a" * 5000]
NUMBERS = [b"\0", b"\xff", b"\x7f", b"\x80", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0",
           b"\xff" * 8, b"\0\0\0\x01", b"\x01\0\0\0", b"\x80\0\0\0", b"\0" * 16]


def spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four edits; most of them near the start, where formats keep what matters."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(min(len(data), rng.choice([16, 64, 512, 4096, len(data)])))
        how = rng.randrange(7)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            some = rng.choice(NUMBERS)
            data[at:at + len(some)] = some
        elif how == 2:
            del data[rng.randrange(len(data)):]
        elif how == 3:
            del data[at:at + rng.randint(1, 64)]
        elif how == 4:
            data[at:at] = rng.randbytes(rng.randint(1, 64))
        elif how == 5:
            data[at:at + 8] = rng.randbytes(8)
        else:
            data[at:at] = data[at:at + rng.randint(1, 256)] * rng.randint(1, 8)
    return bytes(data)


def spoil_json(data: bytes, rng: random.Random) -> bytes:
    """A value replaced, an entry removed or added, at any depth; or else the bytes."""
    if rng.random() < 0.15:
        return spoil_bytes(data, rng)
    content = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        content = _spoil_tree(content, rng)
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _spoil_tree(content, rng: random.Random):
    if not isinstance(content, (dict, list)) or not content or rng.random() < 0.03:
        return copy.deepcopy(rng.choice(ODD))
    keys = list(content) if isinstance(content, dict) else range(len(content))
    key = rng.choice(list(keys))
    if rng.random() < 0.15:
        del content[key]
    elif rng.random() < 0.1 and isinstance(content, dict):
        content[rng.choice(["", "x", "\ud800", f"{key}_"])] = content.pop(key)
    else:
        content[key] = _spoil_tree(content[key], rng)
    return content


def spoil_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header as JSON, the tensors' values, or the bytes."""
    how = rng.random()
    if how < 0.2:
        return spoil_bytes(data, rng)
    length, = struct.unpack("<Q", data[:8])
    header, body = data[8:8 + length], bytearray(data[8 + length:])
    if how < 0.5 and body:
        entries = [v for k, v in json.loads(header).items() if k != "__metadata__"]
        start, end = rng.choice(entries)["data_offsets"]
        if end > start:
            some = rng.choice([b"\xff", b"\x7f", b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\x7c",
                               b"\0\x7e"])
            at = rng.randrange(start, end) // 4 * 4
            body[at:at + len(some)] = some
    else:
        header = spoil_json(header, rng)
    return struct.pack("<Q", len(header)) + header + bytes(body)


def spoil_pickle(data: bytes, rng: random.Random) -> bytes:
    """The content of a torch.save file, or its bytes."""
    if rng.random() < 0.3:
        return spoil_bytes(data, rng)
    content = torch.load(io.BytesIO(data), weights_only=True)
    for _ in range(rng.randint(1, 3)):
        content = _spoil_tensors(content, rng)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _spoil_tensors(content, rng: random.Random):
    if isinstance(content, torch.Tensor):
        return rng.choice(ODD_TENSORS)(content)
    if not isinstance(content, (dict, list, tuple)) or not content or rng.random() < 0.03:
        return copy.deepcopy(rng.choice(ODD))
    if isinstance(content, tuple):
        return tuple(_spoil_tensors(list(content), rng))
    key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
    if rng.random() < 0.1:
        del content[key]
    elif rng.random() < 0.1 and isinstance(content, dict):
        content[rng.choice([7, "", "x", ("a",), f"{key}_"])] = content.pop(key)
    else:
        content[key] = _spoil_tensors(content[key], rng)
    return content


ODD_TENSORS: list[Callable] = [
    lambda t: t[..., :0], lambda t: t.reshape(-1), lambda t: t[None], lambda t: t.to(torch.int64),
    lambda t: t.to(torch.bool), lambda t: t.to(torch.complex64), lambda t: torch.tensor(1.0),
    lambda t: t * float("nan"), lambda t: t + float("inf"), lambda t: t.to(torch.float64) * 1e300,
    lambda t: t.to_sparse(), lambda t: torch.empty(0), lambda t: torch.zeros(1).expand(2 ** 34),
    lambda t: None, lambda t: 1.0, lambda t: "tensor", lambda t: {"a": t}, lambda t: [t, t]]


def spoil_text(data: bytes, rng: random.Random) -> bytes:
    return rng.choice([data * rng.randint(1, 2000), rng.randbytes(rng.randint(1, 99)), b"",
                       b"\xff\xfe" + data, b"\0" * 50, "𝕏\u202e\u0301".encode() * 99,
                       spoil_bytes(data, rng)])


BY_ENDING = {".json": spoil_json, ".safetensors": spoil_safetensors, ".ckpt": spoil_pickle,
             ".pt": spoil_pickle, ".txt": spoil_text}


def spoil(name: str, data: bytes, rng: random.Random) -> bytes:
    """What a file of this name could have become."""
    ending = name[name.rindex("."):]
    return BY_ENDING.get(ending, spoil_bytes)(data, rng)

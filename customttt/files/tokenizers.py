"""CLIP's tokenizer in a folder: `vocab.json`, `merges.txt`, and the padding token beside them."""

import warnings
from pathlib import Path

from ..errors import UserError, in_words, writing
from ..model.tokenizer import END, START, Tokenizer
from .checks import clipped, is_whole, shortened
from .reading import read_json, write_json


def read_tokenizer(folder: str | Path, length: int, room: int = 2 ** 20) -> Tokenizer:
    """The tokenizer of a folder, for prompts of `length` tokens and a table of `room` rows.

    `vocab.json` and `merges.txt`, or the `tokenizer.json` that transformers 5 writes in their
    place. Raises UserError.
    """
    folder = Path(folder)
    if (folder / "vocab.json").is_file() or not (folder / "tokenizer.json").is_file():
        file = folder / "vocab.json"
        vocabulary, merges = _read_two(folder)
    else:
        file = folder / "tokenizer.json"
        model = read_json(file).get("model")
        if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
            raise UserError(f"{file}: not a byte-pair tokenizer; fetch it again")
        vocabulary, merges = model.get("vocab"), model["merges"]
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    if not isinstance(vocabulary, dict) or not {START, END} <= vocabulary.keys():
        raise UserError(f"{file}: not a CLIP vocabulary; fetch it again")
    ids = list(vocabulary.values())
    if not all(is_whole(i, 0, room - 1) for i in ids) or len(set(ids)) < len(ids):
        raise UserError(f"{file}: its tokens are not numbered from 0 to {room - 1}, as the text "
                        f"encoder's table has them: it belongs to another model; fetch both again")
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2
               and all(isinstance(each, str) for each in pair) for pair in merges):
        raise UserError(f"{folder}: not a CLIP vocabulary: its merges are no pairs; fetch it "
                        f"again")
    added, made = _added_tokens(folder), set(map("".join, merges))
    pieces = {token for token, i in vocabulary.items() if len(token.removesuffix("</w>")) > 1
              and i < max(vocabulary[START], vocabulary[END])}      # behind them: special tokens
    if lost := made - vocabulary.keys() | pieces - made - {START, END, *added}:
        raise UserError(f"{folder}: vocabulary and merges do not go together: {len(lost)} tokens "
                        f"are in one of them alone ({clipped(min(lost))}); fetch both again")
    if unknown := [token for token in added if token not in vocabulary]:
        warnings.warn(f"{folder}: its added tokens ({clipped(', '.join(unknown))}) are not used: "
                      f"in a prompt they are spelled in pieces", stacklevel=3)
    pad = _padding_token(folder)
    if pad not in vocabulary:
        raise UserError(f"{folder / 'tokenizer_config.json'}: pad_token is {shortened(pad)}, which "
                        f"is not in the vocabulary; fetch it again")
    return Tokenizer({token: int(i) for token, i in vocabulary.items()}, list(map(tuple, merges)),
                     length, pad)


def _read_two(folder: Path) -> tuple[dict, list]:
    """`vocab.json` and `merges.txt`."""
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no tokenizer here; put vocab.json and merges.txt of "
                            f"Stable Diffusion 1.5 (its tokenizer/ folder) there")
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'merges.txt'}: cannot be read as UTF-8 text "
                        f"({in_words(error)}); fetch it again") from error
    return read_json(folder / "vocab.json"), [
        tuple(line.split()) for line in lines if line and not line.startswith("#version")]


def _added_tokens(folder: Path) -> list[str]:
    """Of textual inversion and the like."""
    for name in ("added_tokens.json", "tokenizer.json"):
        if (folder / name).is_file():
            added = read_json(folder / name)
            if name == "tokenizer.json":
                added = added.get("added_tokens", [])
                if not isinstance(added, list) or not all(isinstance(each, dict) for each in added):
                    raise UserError(f"{folder / name}: its added_tokens are no tokens; fetch it "
                                    f"again")
                added = [each.get("content") for each in added]
            return [str(token) for token in added]
    return []


def _padding_token(folder: Path) -> str:
    """END in Stable Diffusion 1.x, "!" in 2.x."""
    file = folder / "tokenizer_config.json"
    pad = read_json(file).get("pad_token") if file.is_file() else None
    pad = pad.get("content") if isinstance(pad, dict) else pad
    return pad if isinstance(pad, str) and pad else END


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    write_json(tokenizer.vocabulary, folder / "vocab.json")
    merges = sorted(tokenizer.rank, key=tokenizer.rank.get)
    with writing(folder / "merges.txt") as temporary:
        temporary.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
                             encoding="utf-8")
    write_json({"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length,
                "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": tokenizer.pad},
               folder / "tokenizer_config.json")

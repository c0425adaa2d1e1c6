"""CLIP's tokenizer in a folder: `vocab.json`, `merges.txt`, and the padding token beside them."""

import json
from pathlib import Path

from ..errors import UserError, writing
from ..model.tokenizer import END, START, Tokenizer
from .reading import write_json


def read_tokenizer(folder: str | Path, length: int) -> Tokenizer:
    """The tokenizer of a folder, for prompts of `length` tokens. Raises UserError."""
    folder = Path(folder)
    try:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split()) for line in lines
                  if line and not line.startswith("#version")]
        if any(len(pair) != 2 for pair in merges) or not {START, END} <= vocabulary.keys():
            raise ValueError("not a CLIP vocabulary")
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no tokenizer here; put vocab.json and merges.txt of Stable "
                        f"Diffusion 1.5 (its tokenizer/ folder) there") from error
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: vocab.json or merges.txt cannot be read ({error}); fetch "
                        f"both again") from error
    return Tokenizer(vocabulary, merges, length, _padding_token(folder))


def _padding_token(folder: Path) -> str:
    """END in Stable Diffusion 1.x, "!" in 2.x."""
    try:
        text = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
        pad = json.loads(text)["pad_token"]
    except (OSError, ValueError, KeyError):
        return END
    return (pad["content"] if isinstance(pad, dict) else pad) or END


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    write_json(tokenizer.vocabulary, folder / "vocab.json")
    merges = sorted(tokenizer.rank, key=tokenizer.rank.get)
    with writing(folder / "merges.txt") as temporary:
        temporary.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
                             encoding="utf-8")
    write_json({"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length,
                "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": tokenizer.pad},
               folder / "tokenizer_config.json")

"""CLIP's byte-pair tokenizer (Radford et al. 2021; byte-level BPE of Radford et al. 2019)."""

import json
import re
import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def byte_symbols() -> list[str]:
    """One printable character for each of the 256 bytes, as the vocabulary files spell them."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
            *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def split_words(text: str) -> list[str]:
    """Split lower-case text into contractions, letters, single digits and the rest.

    CLIP's pattern, with Unicode categories where it has \\p{L} and \\p{N}:
    's 't 're 've 'm 'll 'd | \\p{L}+ | \\p{N} | [^\\s\\p{L}\\p{N}]+
    """
    words, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        end = at + 1
        contraction = next((s for s in CONTRACTIONS if text.startswith(s, at)), None)
        kind = _kind(text[at])
        if contraction is not None:
            end = at + len(contraction)
        elif kind != "number":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        words.append(text[at:end])
        at = end
    return words


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")


class Tokenizer:
    """Strings -> token ids (b 77): start, the text, end, then `pad` to the full length."""

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], length: int = 77,
                 pad: str = END):
        self.vocabulary, self.length, self.pad = vocabulary, length, pad
        self.rank = {pair: rank for rank, pair in enumerate(merges)}
        self.symbols = byte_symbols()
        self.token_of = {i: token for token, i in vocabulary.items()}
        self.start, self.end = vocabulary[START], vocabulary[END]
        self._merge = lru_cache(maxsize=65536)(self._merge)

    @classmethod
    def from_folder(cls, folder: str | Path, length: int) -> "Tokenizer":
        """Read `vocab.json` and `merges.txt` (and the padding token of `tokenizer_config.json`)."""
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
        return cls(vocabulary, merges, length, cls._padding(folder))

    @staticmethod
    def _padding(folder: Path) -> str:
        """The padding token: END in Stable Diffusion 1.x, "!" in 2.x."""
        try:
            text = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
            pad = json.loads(text)["pad_token"]
        except (OSError, ValueError, KeyError):
            return END
        return (pad["content"] if isinstance(pad, dict) else pad) or END

    def __call__(self, texts: list[str]) -> Tensor:
        """Strings -> ids (b 77). A longer text is cut, with a warning that shows what was lost."""
        return torch.tensor([self._padded(text) for text in texts])

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone, without start, end or padding."""
        ids = []
        for part in re.split(f"({re.escape(START)}|{re.escape(END)})", text):
            if part in (START, END):
                ids.append(self.vocabulary[part])
                continue
            for word in split_words(unicodedata.normalize("NFC", part).lower()):
                symbols = "".join(self.symbols[byte] for byte in word.encode("utf-8", "replace"))
                ids += [self.vocabulary.get(token, self.end) for token in self._merge(symbols)]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Ids -> text, for messages."""
        byte_of = {symbol: byte for byte, symbol in enumerate(self.symbols)}
        text = "".join(self.token_of[i] for i in ids).replace("</w>", " ")
        return bytes(byte_of.get(c, 32) for c in text).decode("utf-8", errors="replace").strip()

    def _padded(self, text: str) -> list[int]:
        ids, room = self.encode(text), self.length - 2
        if len(ids) > room:
            warnings.warn(f"the prompt has {len(ids)} tokens, {room} fit; left out: "
                          f"\"{self.decode(ids[room:])}\"", stacklevel=3)
        ids = [self.start, *ids[:room], self.end]
        return ids + [self.vocabulary[self.pad]] * (self.length - len(ids))

    def _merge(self, symbols: str) -> list[str]:
        """Join neighbours, the pair of lowest rank first, until no pair is in the merge table."""
        tokens = [*symbols[:-1], symbols[-1] + "</w>"]
        while len(tokens) > 1:
            pairs = list(zip(tokens, tokens[1:]))
            best = min(pairs, key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            merged, at = [], 0
            while at < len(tokens):
                if tuple(tokens[at:at + 2]) == best:
                    merged.append("".join(best))
                    at += 2
                else:
                    merged.append(tokens[at])
                    at += 1
            tokens = merged
        return tokens

"""CLIP's byte-pair tokenizer (Radford et al. 2021; byte-level BPE of Radford et al. 2019)."""

import re
import unicodedata
import warnings

import torch
from torch import Tensor

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


def merge(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    """Join the two wherever they follow each other."""
    joined, at = [], 0
    while at < len(tokens):
        size = 2 if tuple(tokens[at:at + 2]) == pair else 1
        joined.append("".join(tokens[at:at + size]))
        at += size
    return joined


class Tokenizer:
    """Strings -> token ids (b 77): start, the text, end, then `pad` to the full length."""

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], length: int = 77,
                 pad: str = END):
        self.vocabulary, self.length, self.pad = vocabulary, length, pad
        self.rank = {pair: rank for rank, pair in enumerate(merges)}
        self.symbols = byte_symbols()
        self.token_of = {i: token for token, i in vocabulary.items()}
        self.start, self.end = vocabulary[START], vocabulary[END]

    def __call__(self, texts: list[str]) -> Tensor:
        """Strings -> ids (b 77). A longer text is cut, with a warning that shows what was lost.
        Raises ValueError for one string, which would be read letter by letter."""
        if isinstance(texts, str):
            raise ValueError("texts: a list of strings; got one string")
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
                ids += [self.vocabulary.get(token, self.end) for token in self._byte_pairs(symbols)]
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

    def _byte_pairs(self, symbols: str) -> list[str]:
        """Join neighbours, the pair of lowest rank first, until no pair is in the merge table."""
        tokens = [*symbols[:-1], symbols[-1] + "</w>"]
        while pairs := [pair for pair in zip(tokens, tokens[1:]) if pair in self.rank]:
            tokens = merge(tokens, min(pairs, key=self.rank.get))
        return tokens

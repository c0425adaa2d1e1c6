"""The tokenizer gives the ids of the reference, transformers' CLIPTokenizer.

With two vocabularies: `trained` is always there, a byte-level one that the test trains with the
`tokenizers` package on the sentences below; `clip` is CLIP's own, built from the merge table inside
the open_clip package where that is installed (pip install --no-deps open-clip-torch), else skipped.
"""

import gzip
import importlib.util
import json
import random
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer as ReferenceBPE
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizerFast

from customttt import UserError
from customttt.files.tokenizers import read_tokenizer
from customttt.model.tokenizer import END, START, Tokenizer, byte_symbols

SENTENCES = """
a teddy bear is lifting weights, and the man isn't; they're running on the beach at 8 am.
A red star is moving right on the snow! Ein Bär läuft über die Straße: schöne Grüße aus Köln.
Un ours en peluche soulève des haltères près de la forêt, c'est très drôle. El niño corrió mañana.
Медведь поднимает штангу и бежит по снегу. Η αρκούδα σηκώνει βάρη στην παραλία και τρέχει.
熊のぬいぐるみがウェイトを持ち上げている。泰迪熊在海滩上举重。곰 인형이 해변에서 역기를 들고 있다。
الدب يرفع الأثقال على الشاطئ. भालू समुद्र तट पर भार उठा रहा है। หมีกำลังยกน้ำหนัก.
😀 😀 👨‍👩‍👧 ½ ½ x² 100%"""

TEXTS = {
    "plain": "a photo of a cat",
    "case": "A Teddy BEAR Is Lifting Weights",
    "accents": "café naïve Ångström Straße ŒUVRE ǅ İstanbul",
    "combining marks": "cafe\u0301 A\u030angstro\u0308m q\u0307\u0323 \u0301alone e\u0301\u0301",
    "composed or not": "\u212b \u1e9b\u0323 ﬁne \uac00 \u1100\u1161",
    "digits": "1234 3d 2x4 0.5 1,000,000 ٣٤ 一二三",
    "superscripts and fractions": "x² 10⁻³ ½ ⅔ ⅷ ① ㊿ 𝟗",
    "emoji": "😀👍🏽👨‍👩‍👧‍👦 🏳️‍🌈 ❤️ ☃",
    "punctuation": "wow!!! (really?!) --- ... ,,; #hash @you a/b\\c $5 50% <b> [x] {y} ~^_`|",
    "contractions": "don't I'LL we've they're it's I'd I'm 'tis 's ''s 'S!'s rock'n'roll 'll'd",
    "curly quotes": "don’t “quote” ‘s",
    "CJK": "泰迪熊在海滩上举重 ウェイトを持ち上げ 곰 인형",
    "right to left": "الدب يرفع السلام עליכם",
    "Indic": "भालू क्षि ക്ഷ ตัวหมี",
    "white space": " \t a\nb\r\n\vc\f d\u00a0e\u2003f\u3000g\u2028h\u0085i  ",
    "no white space": "a\u200bb\u200dc\ufeffd\u180ee\u00adf",
    "controls": "a\x00b\x07c\x7fd",
    "beyond the first plane": "𝕳𝖊𝖑𝖑𝖔 𓀀 𐍈 𠮷",
    "empty": "",
    "blank": " \n\t ",
    "specials": "a <|endoftext|> b<|startoftext|>c <|endoftext|><|endoftext|> <|ENDOFTEXT|> <|end",
    "long word": "pneumonoultramicroscopicsilicovolcanoconiosis" * 3,
}
# Characters from everywhere, for random strings. No capital sigma: see below.
ALPHABETS = ["abcXYZ", "0123½²", " \t\n\u00a0\u3000", "'’stremdlSTREL", "!?.,-_/#@<|>",
             "éÉß\u0301\u0327", "日本語のがカ\u3099", "😀🏽\u200d\ufe0f👧❤", "αβγДжи", "عربي",
             "हिंदी", "한국\u1100\u1161", "𝕳𠮷"]
PLAIN = {"add_special_tokens": False}


def clip_merges():
    """CLIP's own merge table from the open_clip package, which is not imported."""
    if (spec := importlib.util.find_spec("open_clip")) is None:
        pytest.skip("open_clip is not installed: CLIP's own merge table is not at hand")
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    return gzip.decompress(path.read_bytes()).decode().split("\n")[1:48894 + 1]


def trained_merges():
    """Merges learned from SENTENCES by the tokenizers package, behind CLIP's own splitting."""
    clip = CLIPTokenizerFast().backend_tokenizer
    bpe = ReferenceBPE(BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    bpe.train_from_iterator([SENTENCES], BpeTrainer(vocab_size=900, end_of_word_suffix="</w>",
                                                    show_progress=False))
    return [" ".join(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


@pytest.fixture(scope="module", params=["trained", "clip"])
def folder(request, tmp_path_factory):
    """vocab.json and merges.txt as CLIP's: bytes, bytes that end a word, merges, two specials."""
    merges = trained_merges() if request.param == "trained" else clip_merges()
    symbols = byte_symbols()
    symbols.sort(key=lambda symbol: (ord(symbol) >= 256, ord(symbol)))
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols),
              *("".join(line.split()) for line in merges), START, END]
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return read_tokenizer(folder, length=77)


@pytest.fixture(scope="module")
def reference(folder):
    return CLIPTokenizerFast.from_pretrained(folder)


def padded(reference, texts):
    return reference(texts, padding="max_length", truncation=True, max_length=77).input_ids


def test_known_ids():
    """The ids that every CLIP tutorial prints."""
    merges = [tuple(line.split()) for line in clip_merges()]
    symbols = sorted(byte_symbols(), key=lambda symbol: (ord(symbol) >= 256, ord(symbol)))
    tokens = [*symbols, *(s + "</w>" for s in symbols), *map("".join, merges), START, END]
    assert len(tokens) == 49408
    clip = Tokenizer({token: i for i, token in enumerate(tokens)}, merges)
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert clip(["a photo of a cat"]).tolist() == [ids + [49407] * 70]


def test_the_trained_vocabulary_merges(folder):
    assert len((folder / "merges.txt").read_text(encoding="utf-8").splitlines()) > 300


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.filterwarnings("ignore:the prompt has")
def test_ids_equal_the_reference(ours, reference, name):
    assert ours([TEXTS[name]]).tolist() == padded(reference, [TEXTS[name]])


def test_a_batch_is_its_texts(ours, reference):
    texts = [TEXTS[name] for name in ("plain", "empty", "accents", "emoji")]
    assert ours(texts).tolist() == padded(reference, texts)
    assert ours(texts).shape == (4, 77)


@pytest.mark.parametrize("seed", range(4))
def test_random_strings(ours, reference, seed):
    draw = random.Random(seed)
    for _ in range(100):
        text = "".join(draw.choice(draw.choice(ALPHABETS)) for _ in range(draw.randint(1, 40)))
        assert ours.encode(text) == reference(text, **PLAIN).input_ids, repr(text)


def test_every_character(ours, reference):
    """Each one of Unicode 3.2, which both sides know in any version, between two letters."""
    known = unicodedata.ucd_3_2_0.category
    separators = range(0x1c, 0x20)      # see the next test
    characters = [chr(c) for c in range(sys.maxunicode + 1)
                  if known(chr(c)) not in ("Cn", "Cs", "Co") and c not in separators]
    assert len(characters) > 90_000
    for at in range(0, len(characters), 2000):
        words = [f"a{c}b" for c in characters[at:at + 2000]]
        if ours.encode(" ".join(words)) != reference(" ".join(words), **PLAIN).input_ids:
            differ = [w for w in words if ours.encode(w) != reference(w, **PLAIN).input_ids]
            pytest.fail(f"differs from the reference: {differ}")


def test_where_it_follows_the_original_code(ours):
    """Python's lower case, as in OpenAI's code, knows the final sigma, which transformers' does
    not; and the four separators U+001C to U+001F are white space in Python."""
    assert ours.encode("ΑΣ") == ours.encode("ας") != ours.encode("ασ")
    assert ours.encode("a\x1cb") == ours.encode("a b")


def test_bytes_that_are_not_text_are_replaced(ours):
    """A file name or an argument in another encoding reaches Python as lone surrogates."""
    assert ours.encode("a\udce9b") == ours.encode("a?b")


def test_a_long_prompt_is_cut_with_a_warning(ours, reference):
    """300 words: the first 75 tokens stay, and the warning shows what was lost."""
    text = " ".join(f"{word} bear" for word in ["red", "tall", "old"] * 50)
    count = len(ours.encode(text))
    with pytest.warns(UserWarning, match=f"the prompt has {count} tokens, 75 fit; left") as caught:
        ids = ours([text])
    assert ids.tolist() == padded(reference, [text])
    assert ids[0, 0] == ours.start and ids[0, 76] == ours.end
    lost = str(caught[0].message).split('"')[1]
    kept = ours.decode(ids[0, 1:76].tolist())
    assert lost.endswith("tall bear old bear") and (kept + lost).replace(" ", "") \
        == text.replace(" ", "")


def test_a_prompt_that_just_fits_is_not_warned_about(ours):
    one = ours.encode("a")
    assert len(one) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = ours([" ".join(["a"] * 75)])
    assert ids.tolist() == [[ours.start, *one * 75, ours.end]]


def test_an_empty_prompt(ours):
    assert ours([""]).tolist() == [[ours.start] + [ours.end] * 76]


@pytest.mark.parametrize("text", ["a teddy bear's café", "熊のぬいぐるみ", "Straße"])
def test_decode(ours, text):
    assert ours.decode(ours.encode(text)).replace(" ", "") == text.lower().replace(" ", "")


@pytest.mark.parametrize("written", ["!", {"content": "!"}])
def test_the_padding_token_of_the_folder(folder, tmp_path, written):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": written}))
    tokenizer = read_tokenizer(tmp_path, length=77)
    assert tokenizer([""]).tolist() == [[tokenizer.start, tokenizer.end] + [0] * 75]


@pytest.mark.parametrize("name, content", [
    ("added_tokens.json", {"<cat-toy>": 49408, "<|endoftext|>": 49407}),
    ("tokenizer.json", {"added_tokens": [{"id": 49408, "content": "<cat-toy>"}]})])
def test_added_tokens_are_said(folder, tmp_path, name, content):
    """Of a folder with textual inversion; start and end are no news."""
    for each in ("vocab.json", "merges.txt"):
        (tmp_path / each).write_bytes((folder / each).read_bytes())
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"its added tokens \(<cat-toy>\) are not used"):
        read_tokenizer(tmp_path, length=77)


@pytest.mark.parametrize("added", [5, [5], {"content": "a"}])
def test_added_tokens_that_are_none(folder, tmp_path, added):
    for each in ("vocab.json", "merges.txt"):
        (tmp_path / each).write_bytes((folder / each).read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    with pytest.raises(UserError, match="its added_tokens are no tokens"):
        read_tokenizer(tmp_path, length=77)


def test_special_tokens_behind_the_vocabulary_need_no_merge(folder, tmp_path):
    for each in ("vocab.json", "merges.txt"):
        (tmp_path / each).write_bytes((folder / each).read_bytes())
    words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(words | {"<pad>": len(words)}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    assert read_tokenizer(tmp_path, length=77).pad == "<pad>"


@pytest.mark.parametrize("name, content, needed", [
    ("merges.txt", None, "no tokenizer here; put vocab.json and merges.txt"),
    ("vocab.json", b'{"a": 0', "cannot be read"),
    ("vocab.json", b'{"a": 0}', "not a CLIP vocabulary"),
    ("merges.txt", b"#version: 0.2\na b c\n", "not a CLIP vocabulary"),
    ("merges.txt", b"\xff\xfe\x00", "cannot be read"),
    ("merges.txt", b"", "do not go together: .* tokens are in one of them alone"),
    ("vocab.json", json.dumps({START: 0, END: 1}).encode(), "do not go together")])
def test_a_broken_folder_is_one_sentence(folder, tmp_path, name, content, needed):
    for each in ("vocab.json", "merges.txt"):
        (tmp_path / each).write_bytes((folder / each).read_bytes())
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=needed) as caught:
        read_tokenizer(tmp_path, length=77)
    assert str(caught.value).startswith(str(tmp_path))

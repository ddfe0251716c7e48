"""CLIP's tokenizer against the independent one of `transformers`, and small tokenizers from a file."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import blemish.clip
from blemish.clip.tokenizer import EOT, SOT, Tokenizer, byte_symbols
from blemish.errors import BadWeights

TEXTS = [
    "a photo of a damaged bottle.",
    "A Photo of THE Flawless Transistor, without defect!",
    "it's the part's edge; they're, we've, I'm, you'll, he'd, can't, O'Neil's 'quoted' '",
    'pipe_fryum-03 (class #7): 12.5 mm × 3/4", 1e-5, 100%, 2024-05-17',
    "café naïve Ångström façade e\u0301 ñandú straße ĲSSEL Œuvre",
    "scratch 🔥 crack 👩‍🔧 👍🏽 ☹️ ok",
    "瓶子表面有划痕 損傷のある部品 결함 дефект ελάττωμα عيب פגם",
    "  tabs\tand\nnew\r\nlines   and\u00a0hard\u3000blanks  ",
    "... --- !!! ?! <b>bold</b> {a:[1,2]} \\ / | ~ ^ ` @ # $ & * _ = +",
    "x" * 300,
    "word " * 120,
    "a1b2c3 4D 3D-printed №5 ½ ² Ⅷ",
    "“curly” ‘quotes’ – en — em … ™ © ® ﬁ ﬂ ｗｉｄｅ",
    "\u0000\u0001\ufffd control",
    "",
    " ",
]
# letters newer than this are unknown to one library or the other, depending on its age
ASSIGNED_LONG_AGO = st.characters(exclude_categories=("Cs", "Cn")).filter(
    lambda letter: unicodedata.ucd_3_2_0.category(letter) != "Cn"
)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`transformers`' tokenizer from vocabulary and merge files made of the published merge table."""
    import transformers

    folder = tmp_path_factory.mktemp("reference")
    table = Path(blemish.clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(table.read_bytes()).decode("utf-8").split("\n")[1 : 48894 + 1]
    letters = list(_gpt2_bytes().values())
    words = letters + [letter + "</w>" for letter in letters] + [merge.replace(" ", "") for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def _gpt2_bytes() -> dict[int, str]:
    """The byte table of GPT-2, built by membership rather than by ranges."""
    visible = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
    hidden = [b for b in range(256) if b not in visible]
    return {**{b: chr(b) for b in visible}, **{b: chr(256 + i) for i, b in enumerate(hidden)}}


def test_byte_symbols_are_gpt2s() -> None:
    assert byte_symbols() == list(_gpt2_bytes().values())
    assert len(set(byte_symbols())) == 256


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_equals_transformers(text: str, reference: Any) -> None:
    assert Tokenizer.clip().encode(text) == reference(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=150, deadline=None)
@given(text=st.text(ASSIGNED_LONG_AGO, max_size=60))
def test_equals_transformers_on_any_text(text: str, reference: Any) -> None:
    # `transformers` resolves no entities, and lowers letters one by one, which differs for a final sigma
    if "&" in text or "Σ" in text:
        text = text.replace("&", "+").replace("Σ", "s")
    # what Python and the other count as white space differs for four control characters
    text = text.translate(dict.fromkeys(range(0x1C, 0x20), " "))
    assert Tokenizer.clip().encode(text) == reference(text, add_special_tokens=False)["input_ids"]


def test_published_ids() -> None:
    tokenizer = Tokenizer.clip()
    assert (tokenizer.sot, tokenizer.eot, tokenizer.vocab_size) == (49406, 49407, 49408)
    assert tokenizer("a diagram")[0, :5].tolist() == [49406, 320, 22697, 49407, 0]
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]


def test_text_is_cleaned_as_in_clip() -> None:
    encode = Tokenizer.clip().encode
    assert encode("nuts &amp;amp; bolts &lt;3") == encode("nuts & bolts <3")
    assert encode("ΟΔΟΣ") == encode("οδος") != encode("οδοσ")
    assert encode("a\x1cb") == encode("a b")
    assert encode("CRACK") == encode("crack")
    assert encode("bad \udcff name") == encode("bad \ufffd name")


def test_rows(reference: Any) -> None:
    tokenizer = Tokenizer.clip()
    texts = ["a crack", "word " * 120]
    ids = tokenizer(texts)
    assert ids.dtype == torch.int64 and ids.shape == (2, 77)
    expected = reference(texts, truncation=True, max_length=77)["input_ids"]
    assert ids[0].tolist() == expected[0] + [0] * (77 - len(expected[0]))
    assert ids[1].tolist() == expected[1] and ids[1, -1] == tokenizer.eot
    assert ids.argmax(dim=-1).tolist() == [3, 76]
    assert tokenizer("a crack").shape == (1, 77)
    assert tokenizer([]).shape == (0, 77)
    assert tokenizer("a photo of a cat", context_length=4).tolist() == [[49406, 320, 1125, 49407]]


def test_exact_fit_is_not_truncated() -> None:
    tokenizer = Tokenizer.clip()
    assert tokenizer("word " * 75, truncate=False)[0, -1] == tokenizer.eot
    with pytest.raises(ValueError, match=r"takes 78 tokens, the text tower has 77"):
        tokenizer("word " * 76, truncate=False)
    with pytest.raises(ValueError, match="context_length is 1"):
        tokenizer("a", context_length=1)


def small_backend(*, specials: tuple[str, ...] = (SOT, EOT)) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=byte_symbols(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(["a scratched metal disc", "a photo of a clean wooden board"] * 20, trainer)
    backend.add_special_tokens(list(specials))
    return backend


def test_own_tokenizer_from_file(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    small_backend().save(str(file))
    tokenizer = Tokenizer.from_file(file)
    assert tokenizer.eot == tokenizer.vocab_size - 1 and tokenizer.sot == tokenizer.vocab_size - 2
    ids = tokenizer(["A Scratched metal DISC", "clean"], context_length=16)
    assert ids[0].tolist() != ids[1].tolist()
    assert ids.argmax(dim=-1).tolist() == [int((row != 0).sum()) - 1 for row in ids]
    assert tokenizer.encode("scratched") == tokenizer.encode("SCRATCHED") != []
    again = tmp_path / "again.json"
    again.write_text(tokenizer.to_json(), encoding="utf-8")
    assert Tokenizer.from_file(again).encode("a wooden disc 9") == tokenizer.encode("a wooden disc 9")


def test_unusable_tokenizer_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(BadWeights, match=r"tokenizer\.json: no usable tokenizer"):
        Tokenizer.from_file(file)
    file.write_text("{not json")
    with pytest.raises(BadWeights, match=r"tokenizer\.json: no usable tokenizer"):
        Tokenizer.from_file(file)
    small_backend(specials=(EOT, SOT)).save(str(file))
    with pytest.raises(BadWeights, match="must be the largest"):
        Tokenizer.from_file(file)
    small_backend(specials=(EOT,)).save(str(file))
    with pytest.raises(BadWeights, match=r"has no <\|startoftext\|> token"):
        Tokenizer.from_file(file)


def test_encoding_needs_no_torch() -> None:
    code = (
        "import sys; from blemish.clip.tokenizer import Tokenizer; Tokenizer.clip().encode('a'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

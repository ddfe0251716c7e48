"""Text to token ids: CLIP's byte-pair encoding and small tokenizers of the same kind, both without network.

Text is cleaned as CLIP's reference does it: HTML entities resolved twice, white space collapsed, lower
case. The reference also repairs broken encodings with `ftfy`; here Unicode NFC stands in for it, as in
`transformers`, so text with typographic quotes or full-width letters keeps them.
"""

from __future__ import annotations

import gzip
import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers

from ..errors import BadWeights

if TYPE_CHECKING:
    from torch import Tensor

MERGES_FILE = Path(__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
SOT, EOT = "<|startoftext|>", "<|endoftext|>"
# CLIP's word pattern; the cleaned text has no white space other than the plain blank
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# file names that are no valid UTF-8 reach Python as lone surrogates, which no encoder takes
_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A byte-pair tokenizer with start and end of text; `clip()` and `from_file()` make one.

    sot, eot: ids of start and end of text; eot is the largest id, so that argmax finds it.
    vocab_size: number of ids.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.sot = self._special(SOT)
        self.eot = self._special(EOT)
        if self.eot != self.vocab_size - 1:
            raise ValueError(f"{EOT} has id {self.eot}; it must be the largest, {self.vocab_size - 1}")

    @classmethod
    def clip(cls) -> Tokenizer:
        """CLIP's own tokenizer: 49,408 ids, start of text 49406, end of text 49407. Made once per process."""
        return _clip_tokenizer()

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizers` JSON file; raises BadWeights when it is not one, or not of CLIP's kind."""
        try:
            return cls(tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except Exception as error:  # the library raises plain Exception for every malformed file
            raise BadWeights(f"{path}: no usable tokenizer: {str(error).splitlines()[0]}") from error

    def to_json(self) -> str:
        """The text of a file that `from_file` reads."""
        return str(self._backend.to_str())

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length, without start and end of text."""
        ids: list[int] = self._backend.encode(clean(text), add_special_tokens=False).ids
        return ids

    def __call__(self, texts: str | Sequence[str], context_length: int = 77, truncate: bool = True) -> Tensor:
        """Rows of ids, ready for the text tower.

        Each row is start of text, the text's ids, end of text, then zeros. A text that is too long is cut so
        that end of text comes last, or refused with ValueError when `truncate` is False.
        Returns int64 (B, context_length); one text gives B = 1.
        """
        import torch

        if context_length < 2:
            raise ValueError(f"context_length is {context_length}; start and end of text alone need 2")
        rows = [texts] if isinstance(texts, str) else list(texts)
        out = torch.zeros(len(rows), context_length, dtype=torch.long)
        for i, text in enumerate(rows):
            ids = self.encode(text)
            if len(ids) > context_length - 2 and not truncate:
                raise ValueError(
                    f"{text[:40]!r} takes {len(ids) + 2} tokens, the text tower has {context_length}; "
                    "shorten it or pass truncate=True"
                )
            row = [self.sot, *ids[: context_length - 2], self.eot]
            out[i, : len(row)] = torch.tensor(row)
        return out

    def _special(self, token: str) -> int:
        found: int | None = self._backend.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no {token} token")
        return found


def clean(text: str) -> str:
    """Text as the byte-pair encoder expects it: entities resolved, NFC, single blanks, lower case.

    Both tokenizer kinds use it, so a tokenizer file needs no normaliser of its own.
    """
    text = html.unescape(html.unescape(_SURROGATES.sub("\ufffd", text)))
    text = unicodedata.normalize("NFC", text)
    return re.sub(r"\s+", " ", text).strip().lower()


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for the bytes, in the order of CLIP's vocabulary.

    Printable Latin-1 bytes stand for themselves and come first; the others follow as U+0100 and up.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in own] + [chr(0x100 + i) for i in range(256 - len(own))]


@lru_cache(maxsize=1)
def _clip_tokenizer() -> Tokenizer:
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as lines:
        next(lines)  # a version line
        merges = [(pair[0], pair[1]) for pair in (next(lines).split() for _ in range(MERGES))]
    symbols = byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), SOT, EOT]
    vocab = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=EOT)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.add_special_tokens([SOT, EOT])
    return Tokenizer(backend)

"""A small tokenizer with all that is hard: parts of characters and of stop strings, and special tokens."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from gecko_mlc.runtime.text.tokenizer import Tokenizer

BOS, END = "<s>", "<|im_end|>"
_MERGES = [("Ċ", "Ċ"), ("b", "Ċ"), ("a", "b"), ("E", "N"), ("EN", "D")]


@functools.cache
def small_tokenizer() -> Tokenizer:
    """All bytes, "\\n\\n", "b\\n", "ab", "EN", "END", and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *("".join(pair) for pair in _MERGES)]
    library = Library(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=_MERGES))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(BOS, special=True), AddedToken(END, special=True)])
    with tempfile.TemporaryDirectory() as folder:
        library.save(f"{folder}/tokenizer.json")
        return Tokenizer(Path(folder))


def ids(*tokens: str) -> list[int]:
    """The ids of tokens, each by its text; of a part of a character by its byte, like "\\xc3" in latin-1."""
    vocabulary = small_tokenizer().vocabulary()
    letters = {chr(i): c for i, c in _bytes_to_letters().items()}
    return [vocabulary[t] if t in (BOS, END) else vocabulary["".join(letters[c] for c in t)] for t in tokens]


def _bytes_to_letters() -> dict[int, str]:
    """How a byte is written in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [i for i in range(256) if i not in plain]
    return {**{i: chr(i) for i in plain}, **{b: chr(256 + n) for n, b in enumerate(others)}}

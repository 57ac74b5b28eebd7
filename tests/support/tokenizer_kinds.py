"""Small tokenizers of the kinds that models come with: how each splits, normalizes, prefixes and decodes."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from gecko_mlc.runtime.text.tokenizer import Tokenizer

BOS, EOS, END = "<s>", "</s>", "<|im_end|>"
# Llama 3's split, in short.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LETTERS = "abcdefghijklmnopqrstuvwxyzHL.,!?:'\n"
WORDS = ("▁the", "▁king", "▁is", "▁dead", "▁Hello", "king", "ed", "\n\n")


def _special(library: Library) -> Library:
    library.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (BOS, EOS, END)])
    return library


def _merges(vocabulary: dict[str, int], words: tuple[str, ...]) -> list[tuple[str, str]]:
    merges = []
    for word in words:
        for end in range(1, len(word)):
            if word[: end + 1] not in vocabulary:
                vocabulary[word[: end + 1]] = len(vocabulary)
                merges.append((word[:end], word[end]))
    return merges


def _byte_level(split: str | None = None, add_prefix_space: bool = False, normalizer: Any = None) -> Library:
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    # Words, parts of characters, and a token that ends one character and begins the next.
    merges = _merges(vocabulary, ("Ġthe", "Ġking", "Hello", "ĊĊ", "ðŁ", "âĢ", "©ð"))
    library = Library(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split is not None))
    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=split is None)
    parts = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    library.pre_tokenizer = pre_tokenizers.Sequence([*parts, level])
    library.decoder = decoders.ByteLevel()
    if normalizer is not None:
        library.normalizer = normalizer
    _special(library)
    template = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, library.token_to_id(BOS))], pair=None
    )
    library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return library


def _sentencepiece(scheme: str, end: bool = False) -> Library:
    """As converted from SentencePiece; `scheme` is a Metaspace's, or "legacy" for normalizers in its place."""
    vocabulary = {"<unk>": 0, BOS: 1, EOS: 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for letter in "▁" + LETTERS:
        vocabulary[letter] = len(vocabulary)
    merges = _merges(vocabulary, WORDS)
    library = Library(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    strip = decoders.Strip(" ", 1, 0)
    if scheme == "legacy":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tail: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        tail = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme), decoders.Fuse()]
    library.decoder = decoders.Sequence(tail)
    library.add_special_tokens(["<unk>"])
    _special(library)
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    library.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}" if end else f"{BOS} $A", special_tokens=[(BOS, 1), (EOS, 2)]
    )
    return library


def _unigram() -> Library:
    """As converted from T5 or XLM-R."""
    scores = [("<unk>", 0.0), *((letter, -5.0) for letter in "▁" + LETTERS), *((word, -6.0) for word in WORDS)]
    library = Library(models.Unigram(scores, unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library = _special(library)
    eos, bos = library.token_to_id(EOS), library.token_to_id(BOS)
    library.post_processor = processors.RobertaProcessing((EOS, eos), (BOS, bos), trim_offsets=True)
    return library


def _wordpiece() -> Library:
    words = ["[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "king", "is", "dead", "##ed"]
    library = Library(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library = _special(library)
    eos, bos = library.token_to_id(EOS), library.token_to_id(BOS)
    library.post_processor = processors.BertProcessing((EOS, eos), (BOS, bos))
    return library


def _word_ends() -> Library:
    """The end of a word is a part of its last token."""
    letters = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    library = Library(
        models.BPE(vocab={t: i for i, t in enumerate(letters)}, merges=[], end_of_word_suffix="</w>", unk_token=None)
    )
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.decoder = decoders.BPEDecoder()
    return _special(library)


def _added() -> Library:
    library = _byte_level(SPLIT)
    library.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True, special=True, normalized=False),
            AddedToken("Norm", normalized=True),
            AddedToken("word", single_word=True),
        ]
    )
    return library


KINDS: dict[str, Callable[[], Library]] = {
    "gpt-neox": lambda: _byte_level(normalizer=normalizers.NFC()),
    "llama-3": lambda: _byte_level(SPLIT),
    "roberta": lambda: _byte_level(add_prefix_space=True),
    "lower case": lambda: _byte_level(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
    "added tokens": _added,
    "llama-2": lambda: _sentencepiece("legacy"),
    "metaspace always": lambda: _sentencepiece("always"),
    "metaspace first": lambda: _sentencepiece("first", end=True),
    "metaspace never": lambda: _sentencepiece("never"),
    "unigram": _unigram,
    "wordpiece": _wordpiece,
    "word ends": _word_ends,
}
# Those that have a token for any text, and decode to just that.
EXACT = ("gpt-neox", "llama-3", "llama-2", "metaspace always", "metaspace first", "metaspace never")


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    """The tokenizer of a kind."""
    with tempfile.TemporaryDirectory() as folder:
        KINDS[kind]().save(f"{folder}/tokenizer.json")
        return Tokenizer(Path(folder))

"""A text in pieces: the tokens of the whole, the bytes of the whole, and nothing that is not text."""

from __future__ import annotations

import io
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.text.long_text import CONTEXT, Piece, encode_blocks, read_blocks
from gecko_mlc.runtime.text.tokenizer import Tokenizer

ENGLISH = (
    'A "word", twice:  two blanks.\n\n\n\tTabs\r\nand 1234567 numbers 89,  e.g. naïve 🦎s; it\'s the end.\n'
    "The words of the preacher, the son of David, king in Jerusalem. Vanity of vanities, all is vanity   \n"
)
CHINESE = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？"
# A tokenizer's split of numbers by three from the left, and of line ends with the blanks before them.
GPT4 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train(kind: str, folder: Path) -> Tokenizer:
    """A small tokenizer in the style of GPT-2, GPT-4 or Llama 2."""
    library = Library(models.BPE(byte_fallback=kind == "llama"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "llama":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    elif kind == "gpt2":
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GPT4), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    library.decoder = decoders.ByteLevel()
    special = alphabet if kind == "llama" else []
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    # Without a split, words of a Llama are learnt a word at a time, as its trainer does.
    library.train_from_iterator(ENGLISH.split() if kind == "llama" else [ENGLISH], trainer)
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.fixture(scope="module", params=["gpt2", "gpt4", "llama", "demo"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "demo":
        with resources.as_file(resources.files("gecko_mlc.demo")) as shipped:
            return Tokenizer(shipped)
    return train(request.param, tmp_path_factory.mktemp(request.param))


def pieces(tokenizer: Tokenizer, text: str, block: int, piece: int) -> list[Piece]:
    blocks = [text[i : i + block] for i in range(0, len(text), block)]
    return list(encode_blocks(tokenizer, blocks, piece))


@pytest.mark.parametrize(("block", "piece"), [(1, 40), (7, 150), (10_000, 40), (10_000, 41)])
def test_pieces_have_the_tokens_of_the_whole(tokenizer: Tokenizer, block: int, piece: int) -> None:
    text = ENGLISH * 20
    found = pieces(tokenizer, text, block, piece)
    assert len(found) > 10
    assert [i for p in found for i in p.ids] == tokenizer.encode(text)
    assert sum(size for p in found for size in p.sizes) == len(text.encode())
    assert all(len(p.ids) == len(p.sizes) for p in found)


def test_without_blanks_pieces_still_stand_for_the_text(tokenizer: Tokenizer) -> None:
    text = CHINESE * 20
    found = pieces(tokenizer, text, 11, 60)
    assert sum(size for p in found for size in p.sizes) == len(text.encode())
    ids = [i for p in found for i in p.ids]
    assert abs(len(ids) - len(tokenizer.encode(text))) <= 2 * len(found)


def test_the_bytes_of_each_token(tokenizer: Tokenizer) -> None:
    """Cut at any token, the bytes before are those of the text before."""
    text = ENGLISH * 4
    ids, spans = tokenizer.encode_with_places(text)
    sizes = np.cumsum([size for p in pieces(tokenizer, text, 100, 100) for size in p.sizes])
    assert sizes.tolist() == [len(text[:end].encode()) for _, end in spans]
    assert len(ids) == len(sizes)


def test_memory_is_of_one_piece(tokenizer: Tokenizer) -> None:
    """No more of the text is asked for than the next piece needs."""
    given = 0

    def blocks():  # type: ignore[no-untyped-def]
        nonlocal given
        while True:
            given += len(ENGLISH)
            yield ENGLISH

    stream = encode_blocks(tokenizer, blocks(), 500)
    out = 0
    for _ in range(20):
        out += sum(next(stream).sizes)
        assert given - out < 500 + 2 * CONTEXT + 2 * len(ENGLISH)


class Trickle(io.BytesIO):
    """A pipe that gives a byte at a time."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(1)


def test_blocks_are_cut_anywhere() -> None:
    text = ENGLISH + CHINESE
    assert "".join(read_blocks(Trickle(text.encode()), "x")) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ab\xff", "x: byte 2 is not UTF-8; expected a text"),
        ("aé".encode()[:-1], "x: byte 1 is not UTF-8; expected a text"),
        (b"a\0b", "x: there are zero bytes in it; expected a text"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, message: str) -> None:
    for file in (io.BytesIO(data), Trickle(data)):
        with pytest.raises(GeckoError, match=message):
            list(read_blocks(file, "x"))

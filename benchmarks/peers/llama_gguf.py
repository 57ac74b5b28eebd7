"""A Llama with as many parameters as a Gecko, of random weights, as a GGUF file; what its tokens cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gecko_mlc.config import GeckoConfig

HEAD_DIM = 64
QUERIES_A_KEY = 4
# Bytes that 32 weights take, a scale of 16 bits among them.
BLOCK_BYTES = {"F16": 64, "Q8_0": 34, "Q4_0": 18}


class Llama(NamedTuple):
    """The shape of a Llama with grouped-query attention, an FFN with a gate, and an untied head."""

    num_layers: int
    model_dim: int
    ffn_hidden_dim: int
    vocab_size: int

    @property
    def num_heads(self) -> int:
        """Heads of the queries."""
        return self.model_dim // HEAD_DIM

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return max(1, self.num_heads // QUERIES_A_KEY)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names in GGUF and shapes."""
        d, f, kv = self.model_dim, self.ffn_hidden_dim, self.num_kv_heads * HEAD_DIM
        yield "token_embd.weight", (self.vocab_size, d)
        for i in range(self.num_layers):
            yield f"blk.{i}.attn_norm.weight", (d,)
            yield f"blk.{i}.attn_q.weight", (d, d)
            yield f"blk.{i}.attn_k.weight", (kv, d)
            yield f"blk.{i}.attn_v.weight", (kv, d)
            yield f"blk.{i}.attn_output.weight", (d, d)
            yield f"blk.{i}.ffn_norm.weight", (d,)
            yield f"blk.{i}.ffn_gate.weight", (f, d)
            yield f"blk.{i}.ffn_up.weight", (f, d)
            yield f"blk.{i}.ffn_down.weight", (d, f)
        yield "output_norm.weight", (d,)
        yield "output.weight", (self.vocab_size, d)

    def num_parameters(self) -> int:
        """The number of weights."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def nbytes(self, scheme: str) -> int:
        """Bytes of all tensors, matrices as `scheme`, vectors in fp32."""
        return sum(_nbytes(shape, scheme) for _, shape in self.tensors())

    def decode_bytes(self, scheme: str, position: int) -> int:
        """Bytes the token at `position` has to read: all weights but the embedding, fp16 keys and values."""
        weights = self.nbytes(scheme) - _nbytes((self.vocab_size, self.model_dim), scheme)
        return weights + 2 * 2 * self.num_layers * self.num_kv_heads * HEAD_DIM * (position + 1)

    def prefill_flop(self, count: int) -> int:
        """Operations of the products and the attention of the first `count` tokens, the head's once."""
        matrices = sum(math.prod(shape) for name, shape in self.tensors() if name.startswith("blk") and len(shape) == 2)
        pairs = count * (count + 1) // 2
        attention = 2 * 2 * self.num_layers * self.model_dim * pairs
        return 2 * matrices * count + 2 * self.vocab_size * self.model_dim + attention

    def __str__(self) -> str:
        return (
            f"Llama of {self.num_layers} layers, width {self.model_dim}, {self.num_heads} heads of {HEAD_DIM},"
            f" {self.num_kv_heads} of keys and values, FFN {self.ffn_hidden_dim}, vocabulary {self.vocab_size}"
        )


def llama_like(config: GeckoConfig) -> Llama:
    """The Llama of a Gecko's layers, width and vocabulary whose FFN makes its parameters as many.

    The FFN's width is a multiple of 256, which llama.cpp's kernels are made for.
    """
    bare = Llama(config.num_layers, config.model_dim, 0, config.vocab_size)
    missing = config.num_parameters() - bare.num_parameters()
    return bare._replace(ffn_hidden_dim=256 * round(missing / (3 * config.model_dim * config.num_layers) / 256))


def write_gguf(llama: Llama, scheme: str, path: Path) -> None:
    """Write a file of random weights, matrices as `scheme` by the quantizers of PyPI's `gguf`. Memory holds one."""
    import gguf

    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(llama.num_layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(llama.model_dim)
    writer.add_feed_forward_length(llama.ffn_hidden_dim)
    writer.add_head_count(llama.num_heads)
    writer.add_head_count_kv(llama.num_kv_heads)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(llama.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, shape in llama.tensors():
        dtype = types[scheme] if len(shape) == 2 else types.F32
        stored = gguf.quant_shape_to_byte_shape(shape, dtype)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), _nbytes(shape, scheme), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.Generator(np.random.SFC64(0))
    for _, shape in llama.tensors():
        if len(shape) == 2:
            value = rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(shape[1]))
            writer.write_tensor_data(gguf.quantize(value, types[scheme]))
        else:
            writer.write_tensor_data(np.ones(shape, np.float32))
    writer.close()


def _nbytes(shape: tuple[int, ...], scheme: str) -> int:
    elements = math.prod(shape)
    return elements // 32 * BLOCK_BYTES[scheme] if len(shape) == 2 else 4 * elements

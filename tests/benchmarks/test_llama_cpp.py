"""The Llama beside which the CPU benchmark sets a Gecko: its size, and what its tokens cost, counted by hand."""

from __future__ import annotations

import pytest
from peers.llama_gguf import BLOCK_BYTES, Llama, llama_like

from gecko_mlc.config import preset


@pytest.mark.parametrize("name", ["gecko-7b", "gecko-1b", "gecko-120m"])
def test_as_many_parameters(name: str) -> None:
    config = preset(name)
    llama = llama_like(config)
    assert llama.num_parameters() == pytest.approx(config.num_parameters(), rel=0.01)
    assert (llama.num_layers, llama.model_dim, llama.vocab_size) == (
        config.num_layers,
        config.model_dim,
        config.vocab_size,
    )
    # Rows are whole blocks of any scheme.
    assert all(shape[-1] % 256 == 0 for _, shape in llama.tensors() if len(shape) == 2)


def test_costs() -> None:
    """Of the published Llama 3.2 1B, whose 1,235,814,400 parameters have a tied head."""
    llama = Llama(num_layers=16, model_dim=2048, ffn_hidden_dim=8192, vocab_size=128256)
    head = 128256 * 2048
    assert llama.num_parameters() - head == 1_235_814_400
    vectors = (2 * 16 + 1) * 2048
    matrices = llama.num_parameters() - head - vectors
    for scheme, bits in (("F16", 16), ("Q8_0", 8.5), ("Q4_0", 4.5)):
        assert BLOCK_BYTES[scheme] * 8 / 32 == bits
        # 8 heads of 64 for keys and for values, in fp16.
        cache = 16 * 2 * 8 * 64 * 2
        assert llama.decode_bytes(scheme, 2560) == matrices * bits / 8 + 4 * vectors + 2561 * cache
    per_layer = 2 * 2048 * (2048 + 2 * 512 + 2048 + 3 * 8192)
    # A query of 32 heads meets keys and then values of 64.
    pair = 2 * 2 * 32 * 64
    assert llama.prefill_flop(3) == 16 * (3 * per_layer + (1 + 2 + 3) * pair) + 2 * head

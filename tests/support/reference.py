"""Every config field, and the float64 reference's logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference.gecko import Gecko

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_swiglu": {"swiglu": False},
    "not_affine": {"norm_affine": False},
    "two_hop_residual": {"two_hop_residual": True},
    "rescale_nffn": {"rescale_nffn": True},
    "scaled_shared_embedding": {"scale_emb": True, "share_emb": True},
    "other_outputs": {"output_size": 31},
    "no_rope": {"num_rope_heads": 0},
    "partial_rope": {"num_rope_heads": 1, "rope_base": 1e4},
    "norm_groups": {"layernorm_num_groups": 3, "norm_eps": 1e-3},
    "odd_sizes": {
        "model_dim": 30,
        "z_dim": 18,
        "value_dim": 21,
        "num_heads": 3,
        "ffn_hidden_dim": 37,
        "cema_ndim": 3,
        "chunk_size": 7,
        "timenorm_num_groups": 15,
        "timenorm_beta1": 0.9,
        "timenorm_beta2": 0.95,
    },
    "one_head": {"num_heads": 1, "cema_ndim": 1, "num_layers": 1},
}


def reference_logits(config: GeckoConfig, parameters: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    model = Gecko(config).double()
    model.load_state_dict({k: torch.from_numpy(v).double() for k, v in parameters.items()})
    with torch.no_grad():
        logits, _ = model(torch.tensor([tokens]))
    result: np.ndarray = logits[0].numpy()
    return result

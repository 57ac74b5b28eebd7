"""The tree of parameters, named as in the reference's state_dict, with the constants derived from them."""

from __future__ import annotations

from tvm.relax.frontend import nn

from gecko_mlc.config import GeckoConfig
from gecko_mlc.model.trace import Build


class Linear(nn.Linear):  # type: ignore[misc]
    """A weight matrix [out, in] of the quantization's dtype, with or without an fp32 bias."""

    def __init__(self, build: Build, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias, build.quantization.model_dtype, "float32")


class Norm(nn.Module):
    """Weight and bias [D] of a norm, either of which may be missing; fp32, weights stored as offsets from 1."""

    def __init__(self, dim: int, weight: bool, bias: bool) -> None:
        self.weight = nn.Parameter((dim,), "float32") if weight else None
        self.bias = nn.Parameter((dim,), "float32") if bias else None


class ComplexEMA(nn.Module):
    """Coefficients of the complex EMA (2.3), made by `derived.cema_coefficients`."""

    def __init__(self, build: Build) -> None:
        c = build.config
        self.coefficients = nn.Parameter((5, c.cema_ndim, c.model_dim), "float32")


class RotaryTables(nn.Module):
    """cos and sin of the angles of two chunks (8b)."""

    def __init__(self, config: GeckoConfig) -> None:
        shape = (2 * config.chunk_size, config.head_dim // 2)
        self.cos = nn.Parameter(shape, "float32")
        self.sin = nn.Parameter(shape, "float32")


class Mega(nn.Module):
    """The token mixer of a block (2.2 to 2.8)."""

    def __init__(self, build: Build) -> None:
        c = build.config
        self.timenorm = Norm(c.model_dim, weight=True, bias=True)
        self.cema = ComplexEMA(build)
        self.rmsnorm = Norm(c.model_dim, weight=c.norm_affine, bias=False)
        self.wv = Linear(build, c.model_dim, c.value_dim, bias=True)
        self.wz = Linear(build, c.model_dim, c.z_dim, bias=True)
        self.wr = Linear(build, c.model_dim, c.value_dim, bias=True)
        self.wh1 = Linear(build, c.model_dim, c.model_dim, bias=True)
        self.wh2 = Linear(build, c.value_dim, c.model_dim, bias=False)
        self.gamma = nn.Parameter((4, c.z_dim), "float32")
        self.beta = nn.Parameter((4, c.z_dim), "float32")


class NormalizedFFN(nn.Module):
    """The feed-forward part of a block (2.8)."""

    def __init__(self, build: Build) -> None:
        c = build.config
        self.norm = Norm(c.model_dim, weight=c.norm_affine, bias=c.norm_affine)
        self.fc1 = Linear(build, c.model_dim, c.ffn_hidden_dim, bias=False)
        self.fc2 = Linear(build, c.ffn_hidden_dim, c.model_dim, bias=False)
        self.fc3 = Linear(build, c.model_dim, c.ffn_hidden_dim, bias=False) if c.swiglu else None
        self.alpha = nn.Parameter((c.model_dim,), "float32") if c.rescale_nffn else None


class Block(nn.Module):
    """One Gecko block; `prefix` begins the names of its state."""

    def __init__(self, build: Build, layer: int) -> None:
        self.prefix = f"layers.{layer}."
        self.mega = Mega(build)
        self.nffn = NormalizedFFN(build)


class Output(nn.Module):
    """Final norm and head; a tied head has no weight of its own."""

    def __init__(self, build: Build) -> None:
        c = build.config
        self.final_norm = Norm(c.model_dim, weight=True, bias=True)
        if not c.share_emb:
            self.output = Linear(build, c.model_dim, c.num_outputs, bias=False)

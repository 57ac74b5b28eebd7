"""A Gecko step for `torch.compile`, in the manner of gpt-fast: the peer that decoding on a GPU is compared with.

All shapes are static: state is allocated once, keys that are not there yet are masked, the position is read on the
device. One compiled function serves all blocks, and a step with its greedy choice is one CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gecko_mlc.config import GeckoConfig
from gecko_mlc.convert.derived import CEMA_PARAMETERS, cema_coefficients, rope_tables

Tensors = dict[str, Tensor]


class CompiledStep:
    """Decodes greedily, one stream. Weight matrices of `parameters` (the reference's names, which are taken out of
    it) and caches have the embedding's dtype, everything else is fp32.

    `compile` is what makes the functions fast; without it they run as they are.
    """

    def __init__(
        self, config: GeckoConfig, parameters: Tensors, compile: Callable[[Any], Any] = lambda function: function
    ) -> None:
        self.config = config
        self.embed = parameters.pop("embed.weight")
        device, dtype = self.embed.device, self.embed.dtype
        self.cos, self.sin = (torch.from_numpy(table).to(device) for table in rope_tables(config))
        self.weights = [_block_weights(config, parameters, i) for i in range(config.num_layers)]
        self.states = [_block_state(config, device, dtype) for _ in range(config.num_layers)]
        self.output: Tensors = {
            "gain": 1 + parameters.pop("output.final_norm.weight"),
            "bias": parameters.pop("output.final_norm.bias"),
            "head": self.embed if config.share_emb else parameters.pop("output.output.weight"),
        }
        self.output_state: Tensors = _norm_state(config, device)
        # (chunk, offset in the chunk), as the state of a compiled library.
        self.position = torch.zeros(2, dtype=torch.int64, device=device)
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(config.num_outputs, device=device)
        self._block, self._output = compile(_block(config)), compile(_output(config))

    @torch.no_grad()
    def __call__(self) -> None:
        """Consume the current token; the greedy choice is the next one. The host waits for nothing."""
        x = F.embedding(self.token, self.embed)[0].float()
        if self.config.scale_emb:
            x = x * math.sqrt(self.config.model_dim)
        for weights, state in zip(self.weights, self.states, strict=True):
            x = self._block(x, weights, state, self.cos, self.sin, self.position)
        self._output(x, self.output, self.output_state, self.position, self.logits, self.token)

    @torch.no_grad()
    def end_chunk(self) -> None:
        """The working-memory write (2.7) after a chunk's last token, and on to the next chunk."""
        chunk = int(self.position[0])
        if chunk:
            for state in self.states:
                _write_memory(self.config, state, 1 - chunk % 2)
        self.position.copy_(torch.tensor([chunk + 1, 0]))


def _norm_state(c: GeckoConfig, device: torch.device) -> Tensors:
    return {name: torch.zeros(c.timenorm_num_groups, device=device) for name in ("mean", "var")}


def _block_state(c: GeckoConfig, device: torch.device, dtype: torch.dtype) -> Tensors:
    """Caches [H, 2C, features] are two chunk buffers by parity."""
    rows = 2 * c.chunk_size
    return {
        **_norm_state(c, device),
        "h_re": torch.zeros(c.model_dim, c.cema_ndim, device=device),
        "h_im": torch.zeros(c.model_dim, c.cema_ndim, device=device),
        "keys": torch.zeros(c.num_heads, rows, c.head_dim, device=device, dtype=dtype),
        "values": torch.zeros(c.num_heads, rows, c.value_head_dim, device=device, dtype=dtype),
        "memory_keys": torch.zeros(c.num_heads, rows, c.head_dim, device=device, dtype=dtype),
        "memory": torch.zeros(c.num_heads, c.head_dim, c.value_head_dim, device=device, dtype=dtype),
        "log_norm": torch.full((c.num_heads, c.head_dim), -math.inf, device=device),
    }


def _block_weights(c: GeckoConfig, parameters: Tensors, layer: int) -> Tensors:
    """A block's weights; those that share their input as one."""
    prefix = f"layers.{layer}."
    own = {name.removeprefix(prefix): name for name in parameters if name.startswith(prefix)}
    p = {short: parameters.pop(name) for short, name in own.items()}
    device = p["mega.gamma"].device
    coefficients = cema_coefficients(*(p.pop(f"mega.cema.{leaf}").cpu().numpy() for leaf in CEMA_PARAMETERS))
    ones, zeros = torch.ones(c.model_dim, device=device), torch.zeros(c.model_dim, device=device)
    together = ("mega.wz", "mega.wr", "mega.wh1")
    ffn = ["nffn.fc1.weight", "nffn.fc3.weight"] if c.swiglu else ["nffn.fc1.weight"]
    return {
        "gain": 1 + p["mega.timenorm.weight"],
        "bias": p["mega.timenorm.bias"],
        "ema": torch.from_numpy(coefficients).mT.contiguous().to(device),
        "rms_gain": ones + p["mega.rmsnorm.weight"] if c.norm_affine else ones,
        "wv": p["mega.wv.weight"],
        "wv_bias": p["mega.wv.bias"],
        "projections": torch.cat([p[f"{name}.weight"] for name in together]),
        "projections_bias": torch.cat([p[f"{name}.bias"] for name in together]),
        "affine": (1 + p["mega.gamma"]) / math.sqrt(c.head_dim),
        "beta": p["mega.beta"],
        "wh2": p["mega.wh2.weight"],
        "ffn_gain": ones + p["nffn.norm.weight"] if c.norm_affine else ones,
        "ffn_bias": p["nffn.norm.bias"] if c.norm_affine else zeros,
        "fc1": torch.cat([p[name] for name in ffn]),
        "fc2": p["nffn.fc2.weight"],
        "scale": p["nffn.alpha"] if c.rescale_nffn else ones,
    }


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """As a matrix product of one row, which the compiler turns into a sum over the weight's rows."""
    return F.linear(x.to(weight.dtype)[None], weight)[0].float()


def _timestep_norm(c: GeckoConfig) -> Callable[..., Tensor]:
    groups, eps = c.timenorm_num_groups, c.norm_eps
    betas = c.timenorm_beta1, c.timenorm_beta2

    def norm(x: Tensor, w: Tensors, s: Tensors, count: Tensor) -> Tensor:
        grouped = x.view(groups, -1)
        var, mean = torch.var_mean(grouped, dim=1, correction=0)
        w1, w2 = ((1 - beta) / -torch.expm1(count * math.log(beta)) for beta in betas)
        s["mean"].add_(w1 * (mean - s["mean"]))
        s["var"].add_(w2 * (var - s["var"]))
        y = (grouped - s["mean"][:, None]) * torch.rsqrt(s["var"] + eps)[:, None]
        return y.view(-1) * w["gain"] + w["bias"]

    return norm


def _block(c: GeckoConfig) -> Callable[..., Tensor]:
    """One block, in the order of the equations."""
    d, z_dim, e, heads, rotated = c.model_dim, c.z_dim, c.value_dim, c.num_heads, c.rope_heads
    size, eps, norm_groups = c.chunk_size, c.norm_eps, c.layernorm_num_groups
    swiglu, two_hop = c.swiglu, c.two_hop_residual
    timestep_norm = _timestep_norm(c)

    def rms(x: Tensor, groups: int) -> Tensor:
        g = x.view(groups, -1)
        return (g * torch.rsqrt(g.square().mean(-1, keepdim=True) + eps)).view(-1)

    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        even, odd = x[:rotated, 0::2], x[:rotated, 1::2]
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
        return torch.cat([turned, x[rotated:]])

    def block(x: Tensor, w: Tensors, s: Tensors, cos: Tensor, sin: Tensor, position: Tensor) -> Tensor:
        chunk, offset = position[0:1], position[1:2]
        own = chunk % 2
        u = timestep_norm(x, w, s, chunk * size + offset + 1)
        q_re, q_im, p, g_re, g_im = w["ema"]
        h_re = q_re * s["h_re"] - q_im * s["h_im"] + p * u[:, None]
        h_im = q_re * s["h_im"] + q_im * s["h_re"]
        s["h_re"].copy_(h_re)
        s["h_im"].copy_(h_im)
        mx = rms(u + (g_re * h_re - g_im * h_im).sum(-1), norm_groups) * w["rms_gain"]
        v = F.silu(_linear(u, w["wv"]) + w["wv_bias"]).view(heads, 1, -1)
        z, r, h1 = (_linear(mx, w["projections"]) + w["projections_bias"]).split((z_dim, e, d))
        q, k, aq, ak = (w["affine"] * rms(z, heads) + w["beta"]).view(4, heads, -1)

        row = own * size + offset
        s["keys"][:, row] = rotate(k, cos[offset], sin[offset])[:, None].to(s["keys"].dtype)
        s["values"][:, row] = v.to(s["values"].dtype)
        s["memory_keys"][:, row] = ak[:, None].to(s["memory_keys"].dtype)
        near = rotate(q, cos[offset], sin[offset])
        far = rotate(q, cos[offset + size], sin[offset + size])
        # Whether a buffer is the own chunk's: its keys up to this one are seen, the other's if there is one before.
        is_own = (torch.arange(2, device=x.device) == own)[:, None]
        seen = torch.where(is_own, torch.arange(size, device=x.device) <= offset, chunk > 0)
        queries = torch.where(is_own, near[:, None], far[:, None]).to(s["keys"].dtype)
        scores = torch.matmul(s["keys"].view(heads, 2, size, -1), queries[..., None])[..., 0].float()
        weights = scores.masked_fill(~seen, -math.inf).flatten(1).softmax(-1)
        sca = torch.matmul(weights[:, None].to(s["values"].dtype), s["values"]).view(-1).float()
        awm = torch.matmul(aq.softmax(-1)[:, None].to(s["memory"].dtype), s["memory"]).view(-1).float()
        y = x + h1 + _linear(sca * F.silu(r) + awm, w["wh2"])

        ffn_in = F.layer_norm(y.view(norm_groups, -1), (d // norm_groups,), eps=eps).view(-1)
        hidden = _linear(ffn_in * w["ffn_gain"] + w["ffn_bias"], w["fc1"])
        if swiglu:
            first, third = hidden.chunk(2)
            hidden = F.silu(first) * third
        else:
            hidden = F.silu(hidden)
        return w["scale"] * _linear(hidden, w["fc2"]) + (x if two_hop else y)

    return block


def _output(c: GeckoConfig) -> Callable[..., None]:
    """Final norm, head and greedy choice; the position moves on."""
    size, timestep_norm = c.chunk_size, _timestep_norm(c)

    def output(x: Tensor, w: Tensors, s: Tensors, position: Tensor, logits: Tensor, token: Tensor) -> None:
        y = timestep_norm(x, w, s, position[0:1] * size + position[1:2] + 1)
        logits.copy_(_linear(y, w["head"]))
        token.copy_(logits.argmax(-1, keepdim=True))
        position[1:2].add_(1)

    return output


def _write_memory(c: GeckoConfig, s: Tensors, parity: int) -> None:
    rows = slice(parity * c.chunk_size, (parity + 1) * c.chunk_size)
    ak, v, memory = s["memory_keys"][:, rows].float(), s["values"][:, rows].float(), s["memory"].float()
    error = v - ak.softmax(-1) @ memory
    update = ak.softmax(1).mT @ error
    log_mass = ak.logsumexp(1)
    s["log_norm"].copy_(torch.logaddexp(s["log_norm"], log_mass))
    s["memory"].copy_(memory.lerp(update, torch.exp(log_mass - s["log_norm"])[..., None]))

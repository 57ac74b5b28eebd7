"""Gecko in plain PyTorch, to be read beside the specification (section numbers in the comments).

It is the oracle of the tests (float64), the trainer of the demo and a baseline of the benchmarks; the
runtime never imports it. Parameters carry the reference's state_dict names. Any split of a stream into
calls gives the same logits and state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gecko_mlc.config import GeckoConfig


@dataclass
class NormState:
    """Bias-corrected moments of a `TimestepDecayNorm`: `mean`, `var` [B, G]."""

    mean: Tensor
    var: Tensor


@dataclass
class BlockState:
    """Recurrent state of one block.

    `ema` [B, D, N] complex; `window`: k, v, ak of the previous chunk, `own`: of this one, each
    [B, positions, H, features]; `memory` [B, H, dz, dv] and `log_norm` [B, H, dz].
    """

    norm: NormState
    ema: Tensor
    window: tuple[Tensor, Tensor, Tensor]
    own: tuple[Tensor, Tensor, Tensor]
    memory: Tensor
    log_norm: Tensor


@dataclass
class GeckoState:
    """State of a batch of streams after `position` tokens."""

    position: int
    blocks: list[BlockState]
    final_norm: NormState

    def detach(self) -> None:
        """Cut the graph of gradients, in place: truncated backpropagation through time."""
        for norm in [self.final_norm, *(block.norm for block in self.blocks)]:
            norm.mean, norm.var = norm.mean.detach(), norm.var.detach()
        for block in self.blocks:
            block.ema = block.ema.detach()
            block.window = tuple(t.detach() for t in block.window)  # type: ignore[assignment]
            block.own = tuple(t.detach() for t in block.own)  # type: ignore[assignment]
            block.memory, block.log_norm = block.memory.detach(), block.log_norm.detach()


def group_rms(x: Tensor, groups: int, eps: float) -> Tensor:
    """Group RMS normalisation without weight (2.4); x [..., features]."""
    g = x.unflatten(-1, (groups, -1))
    return (g * torch.rsqrt(g.square().mean(-1, keepdim=True) + eps)).flatten(-2)


class TimestepDecayNorm(nn.Module):
    """Spec 2.2, with the moments kept bias-corrected (8a)."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.groups, self.eps = config.timenorm_num_groups, config.norm_eps
        self.betas = (config.timenorm_beta1, config.timenorm_beta2)
        self.weight = nn.Parameter(torch.zeros(config.model_dim))
        self.bias = nn.Parameter(torch.zeros(config.model_dim))

    def forward(self, x: Tensor, state: NormState, start: int) -> Tensor:
        grouped = x.unflatten(-1, (self.groups, -1))
        mu = grouped.mean(-1)
        s = (grouped - mu.unsqueeze(-1)).square().mean(-1)
        mean = self._average(mu, state.mean, self.betas[0], start)
        var = self._average(s, state.var, self.betas[1], start)
        state.mean, state.var = mean[:, -1], var[:, -1]
        y = (grouped - mean.unsqueeze(-1)) * torch.rsqrt(var.unsqueeze(-1) + self.eps)
        return y.flatten(-2) * (1 + self.weight) + self.bias

    @staticmethod
    def _average(values: Tensor, previous: Tensor, beta: float, start: int) -> Tensor:
        """Averages of `values` [B, L, G] and the past, weighted by beta^age."""
        t = torch.arange(values.shape[1], dtype=torch.float64, device=values.device)
        log_beta = math.log(beta)
        age = t[:, None] - t[None, :]
        total = -torch.expm1((start + t + 1) * log_beta)
        weights = torch.where(age >= 0, torch.exp(age * log_beta), 0.0) * (1 - beta) / total[:, None]
        carried = torch.exp((t + 1) * log_beta) * -math.expm1(start * log_beta) / total
        return torch.einsum("ts,bsg->btg", weights.to(values.dtype), values) + torch.einsum(
            "t,bg->btg", carried.to(values.dtype), previous
        )


class ComplexEMA(nn.Module):
    """Spec 2.3; a call convolves a piece with the kernel Re Σ g·p·q^age."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        d, n = config.model_dim, config.cema_ndim
        self.alpha = nn.Parameter(torch.zeros(d, n))
        self.delta = nn.Parameter(torch.zeros(d, n))
        self.theta = nn.Parameter(torch.zeros(d))
        self.gamma = nn.Parameter(torch.zeros(d, n, 2))

    def powers(self, length: int) -> Tensor:
        """q^0 … q^length, [D, N, length + 1] complex."""
        n = self.alpha.shape[1]
        log_modulus = torch.log1p(-torch.sigmoid(self.alpha) * torch.sigmoid(self.delta))
        component = torch.arange(1, n + 1, dtype=self.theta.dtype, device=self.theta.device)
        omega = component * torch.sigmoid(self.theta)[:, None] * (2 * math.pi / n)
        age = torch.arange(length + 1, dtype=self.theta.dtype, device=self.theta.device)
        return torch.polar(torch.exp(log_modulus[..., None] * age), omega[..., None] * age)

    def forward(self, u: Tensor, state: BlockState, powers: Tensor) -> Tensor:
        length = u.shape[1]
        p = torch.sigmoid(self.alpha)
        g = torch.view_as_complex(self.gamma)
        kernel = torch.einsum("dn,dnt->dt", g * p, powers[..., :length]).real
        x = u.transpose(1, 2)
        size = 2 * length
        past = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(kernel, size), size)[..., :length]
        carried = torch.einsum("bdn,dnt->bdt", g * state.ema, powers[..., 1 : length + 1]).real
        entering = torch.einsum("bdt,dnt->bdn", x.to(powers.dtype), powers[..., :length].flip(-1))
        state.ema = powers[..., length] * state.ema + p * entering
        return u + (past + carried).transpose(1, 2)


class RMSNorm(nn.Module):
    """Group RMS normalisation, affine or not (2.4)."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.groups, self.eps = config.layernorm_num_groups, config.norm_eps
        self.weight = nn.Parameter(torch.zeros(config.model_dim)) if config.norm_affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = group_rms(x, self.groups, self.eps)
        return y if self.weight is None else y * (1 + self.weight)


class LayerNorm(nn.Module):
    """Group layer normalisation, affine or not (2.8)."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.groups, self.eps = config.layernorm_num_groups, config.norm_eps
        self.weight = nn.Parameter(torch.zeros(config.model_dim)) if config.norm_affine else None
        self.bias = nn.Parameter(torch.zeros(config.model_dim)) if config.norm_affine else None

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(-1, (self.groups, -1))
        y = F.layer_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2)
        return y if self.weight is None else y * (1 + self.weight) + self.bias


class RotaryEmbedding(nn.Module):
    """Spec 2.5 in its bounded form (8b): cos and sin of angles up to 2C."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        j = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        self.freqs = config.rope_base**-j
        self.heads, self.chunk_size = config.rope_heads, config.chunk_size

    def forward(self, x: Tensor, start: int) -> Tensor:
        """Rotate x [B, L, H, dz] by the positions `start`, `start` + 1, …"""
        angle = torch.arange(start, start + x.shape[1], dtype=torch.float64)[:, None] * self.freqs
        cos, sin = (f(angle).to(x)[:, None, :] for f in (torch.cos, torch.sin))
        even, odd = x[:, :, : self.heads, 0::2], x[:, :, : self.heads, 1::2]
        rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
        return torch.cat([rotated, x[:, :, self.heads :]], dim=2)


class Mega(nn.Module):
    """The token mixer of a block (2.2 to 2.8)."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.config = config
        d, z, e = config.model_dim, config.z_dim, config.value_dim
        self.timenorm = TimestepDecayNorm(config)
        self.cema = ComplexEMA(config)
        self.rmsnorm = RMSNorm(config)
        self.wv = nn.Linear(d, e)
        self.wz = nn.Linear(d, z)
        self.wr = nn.Linear(d, e)
        self.wh1 = nn.Linear(d, d)
        self.wh2 = nn.Linear(e, d, bias=False)
        self.gamma = nn.Parameter(torch.zeros(4, z))
        self.beta = nn.Parameter(torch.zeros(4, z))

    def forward(self, x: Tensor, state: BlockState, start: int, rope: RotaryEmbedding, powers: Tensor) -> Tensor:
        c = self.config
        heads, offset = (c.num_heads, -1), start % c.chunk_size
        u = self.timenorm(x, state.norm, start)
        mx = self.rmsnorm(self.cema(u, state, powers))
        z = group_rms(self.wz(mx), c.num_heads, c.norm_eps)
        affine = (1 + self.gamma) / math.sqrt(c.head_dim)
        q, k, aq, ak = ((z * affine[i] + self.beta[i]).unflatten(-1, heads) for i in range(4))
        v = F.silu(self.wv(u)).unflatten(-1, heads)
        r = F.silu(self.wr(mx))

        new = (rope(k, offset), v, ak)
        state.own = tuple(torch.cat([old, n], dim=1) for old, n in zip(state.own, new, strict=True))  # type: ignore[assignment]
        own_k, own_v, _ = state.own
        window_k, window_v, _ = state.window
        scores = torch.cat(
            [
                torch.einsum("blhd,bjhd->bhlj", rope(q, offset + c.chunk_size), window_k),
                torch.einsum("blhd,bjhd->bhlj", rope(q, offset), own_k),
            ],
            dim=-1,
        )
        length, visible = x.shape[1], scores.shape[-1]
        causal = torch.ones(length, visible, dtype=torch.bool).tril(visible - length)
        weights = scores.masked_fill(~causal, -math.inf).softmax(-1)
        values = torch.cat([window_v, own_v], dim=1)
        sca = torch.einsum("bhlj,bjhd->blhd", weights, values).flatten(-2)
        awm = torch.einsum("blha,bhad->blhd", aq.softmax(-1), state.memory).flatten(-2)
        return x + self.wh1(mx) + self.wh2(sca * r + awm)


class NormalizedFFN(nn.Module):
    """The feed-forward part of a block (2.8)."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        d, f = config.model_dim, config.ffn_hidden_dim
        self.two_hop = config.two_hop_residual
        self.norm = LayerNorm(config)
        self.fc1 = nn.Linear(d, f, bias=False)
        self.fc2 = nn.Linear(f, d, bias=False)
        self.fc3 = nn.Linear(d, f, bias=False) if config.swiglu else None
        self.alpha = nn.Parameter(torch.ones(d)) if config.rescale_nffn else None

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        u = self.norm(y)
        hidden = F.silu(self.fc1(u))
        f = self.fc2(hidden if self.fc3 is None else hidden * self.fc3(u))
        if self.alpha is not None:
            f = self.alpha * f
        return f + (x if self.two_hop else y)


class Block(nn.Module):
    """One Gecko block."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.mega = Mega(config)
        self.nffn = NormalizedFFN(config)

    def forward(self, x: Tensor, state: BlockState, start: int, rope: RotaryEmbedding, powers: Tensor) -> Tensor:
        return self.nffn(self.mega(x, state, start, rope, powers), x)

    @staticmethod
    def end_chunk(state: BlockState, chunk: int) -> None:
        """The working-memory write at the end of chunk `chunk` (2.7); the window moves on."""
        if chunk >= 1:
            _, v, ak = state.window
            kappa = ak.softmax(-1)
            error = v - torch.einsum("bjha,bhad->bjhd", kappa, state.memory)
            update = torch.einsum("bjha,bjhd->bhad", ak.softmax(1), error)
            log_mass = ak.logsumexp(1)
            log_norm = torch.logaddexp(state.log_norm, log_mass)
            rho = torch.exp(log_mass - log_norm).unsqueeze(-1)
            state.memory = (1 - rho) * state.memory + rho * update
            state.log_norm = log_norm
        state.window = state.own
        state.own = tuple(t[:, :0] for t in state.own)  # type: ignore[assignment]


class Output(nn.Module):
    """Final norm and head."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.final_norm = TimestepDecayNorm(config)
        self.output = nn.Linear(config.model_dim, config.num_outputs, bias=False)


class Gecko(nn.Module):
    """The whole model; `load_state_dict` takes the reference's names (buffers are recomputed)."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.model_dim)
        self.rope = RotaryEmbedding(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.output = Output(config)
        if config.share_emb:
            self.output.output.weight = self.embed.weight

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):  # type: ignore[no-untyped-def]
        """As PyTorch's, leaving out the reference's buffers, which are constants of the config."""
        kept = {name: value for name, value in state_dict.items() if name != "rope.freqs" and ".prior_" not in name}
        if self.config.share_emb:
            kept.setdefault("output.output.weight", kept.get("embed.weight"))
        return super().load_state_dict(kept, strict, assign)

    def initial_state(self, batch: int = 1) -> GeckoState:
        """The state before the first token, in the dtype of the parameters."""
        c, weight = self.config, self.embed.weight

        def norm() -> NormState:
            return NormState(*(weight.new_zeros(batch, c.timenorm_num_groups) for _ in range(2)))

        def keys() -> tuple[Tensor, Tensor, Tensor]:
            dz, dv = c.head_dim, c.value_head_dim
            k, v, ak = (weight.new_zeros(batch, 0, c.num_heads, f) for f in (dz, dv, dz))
            return k, v, ak

        blocks = [
            BlockState(
                norm=norm(),
                ema=torch.zeros(batch, c.model_dim, c.cema_ndim, dtype=weight.dtype.to_complex()),
                window=keys(),
                own=keys(),
                memory=weight.new_zeros(batch, c.num_heads, c.head_dim, c.value_head_dim),
                log_norm=weight.new_full((batch, c.num_heads, c.head_dim), -math.inf),
            )
            for _ in range(c.num_layers)
        ]
        return GeckoState(0, blocks, norm())

    def forward(self, tokens: Tensor, state: GeckoState | None = None) -> tuple[Tensor, GeckoState]:
        """Logits [B, L, O] of tokens [B, L], L ≥ 1, and the state after them (`state`, updated)."""
        if state is None:
            state = self.initial_state(tokens.shape[0])
        chunk_size = self.config.chunk_size
        # Powers are shared by the pieces of one call.
        powers = [block.mega.cema.powers(min(chunk_size, tokens.shape[1])) for block in self.layers]
        logits, done = [], 0
        while done < tokens.shape[1]:
            piece = tokens[:, done : done + chunk_size - state.position % chunk_size]
            logits.append(self._piece(piece, state, powers))
            done += piece.shape[1]
        return torch.cat(logits, dim=1), state

    def _piece(self, tokens: Tensor, state: GeckoState, powers: list[Tensor]) -> Tensor:
        """Tokens that do not cross a chunk boundary."""
        x = self.embed(tokens)
        if self.config.scale_emb:
            x = x * math.sqrt(self.config.model_dim)
        for block, block_state, block_powers in zip(self.layers, state.blocks, powers, strict=True):
            x = block(x, block_state, state.position, self.rope, block_powers)
        x = self.output.final_norm(x, state.final_norm, state.position)
        state.position += tokens.shape[1]
        if state.position % self.config.chunk_size == 0:
            for block_state in state.blocks:
                Block.end_chunk(block_state, state.position // self.config.chunk_size - 1)
        return self.output.output(x)

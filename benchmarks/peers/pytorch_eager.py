"""A PyTorch Gecko with preallocated state: the peer that compiled decoding is compared with.

Nothing is concatenated, no complex tensors, no allocation but PyTorch's own temporaries; parameters are
those of `gecko_mlc.reference.gecko`, whose device and dtype the state has. One stream.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gecko_mlc.reference.gecko import Block, Gecko, TimestepDecayNorm


class Step:
    """Decodes one token at a time from position `start` on, in the middle of a stream of zeros."""

    def __init__(self, model: Gecko, start: int = 0) -> None:
        c = self.config = model.config
        self.model, self.position = model, start
        self.blocks = [BlockStep(block) for block in model.layers]
        self.final_norm = NormStep(model.output.final_norm, c.timenorm_num_groups)
        angle = torch.arange(2 * c.chunk_size, dtype=torch.float64)[:, None] * model.rope.freqs.cpu()
        self.cos, self.sin = (f(angle).to(model.embed.weight) for f in (torch.cos, torch.sin))

    @torch.no_grad()
    def __call__(self, token: int) -> Tensor:
        """Logits [O] after `token`."""
        c, t = self.config, self.position
        x = self.model.embed.weight[token]
        if c.scale_emb:
            x = x * math.sqrt(c.model_dim)
        for block in self.blocks:
            x = block(x, t, self.cos, self.sin)
        x = self.final_norm(x, t)
        self.position += 1
        if self.position % c.chunk_size == 0:
            for block in self.blocks:
                block.end_chunk(t // c.chunk_size)
        return self.model.output.output(x)


class NormStep:
    """Timestep decay norm, a step."""

    def __init__(self, norm: TimestepDecayNorm, groups: int) -> None:
        self.norm = norm
        self.mean, self.var = norm.weight.new_zeros(2, groups)
        self.gain = 1 + norm.weight.detach()

    def __call__(self, x: Tensor, t: int) -> Tensor:
        grouped = x.view(self.norm.groups, -1)
        var, mean = torch.var_mean(grouped, dim=1, correction=0)
        w1, w2 = ((1 - b) / -math.expm1((t + 1) * math.log(b)) for b in self.norm.betas)
        self.mean.lerp_(mean, w1)
        self.var.lerp_(var, w2)
        y = (grouped - self.mean[:, None]) * torch.rsqrt(self.var + self.norm.eps)[:, None]
        return torch.addcmul(self.norm.bias, y.view(-1), self.gain)


class BlockStep:
    """One block, a step."""

    def __init__(self, block: Block) -> None:
        mega = block.mega
        c = self.config = mega.config
        self.block, self.mega = block, mega
        self.norm = NormStep(mega.timenorm, c.timenorm_num_groups)
        with torch.no_grad():
            p = torch.sigmoid(mega.cema.alpha)
            modulus = 1 - p * torch.sigmoid(mega.cema.delta)
            component = torch.arange(1, c.cema_ndim + 1, device=p.device)
            omega = component * torch.sigmoid(mega.cema.theta)[:, None] * (2 * math.pi / c.cema_ndim)
            self.p, self.q_re, self.q_im = p, modulus * torch.cos(omega), modulus * torch.sin(omega)
            self.g_re, self.g_im = mega.cema.gamma.unbind(-1)
            self.affine = (1 + mega.gamma) / math.sqrt(c.head_dim)
        zeros = mega.gamma.new_zeros
        self.h_re, self.h_im = zeros(2, c.model_dim, c.cema_ndim)
        # Two chunk buffers by parity, heads first.
        self.keys = zeros(2, c.num_heads, c.chunk_size, c.head_dim)
        self.values = zeros(2, c.num_heads, c.chunk_size, c.value_head_dim)
        self.memory_keys = zeros(2, c.num_heads, c.chunk_size, c.head_dim)
        self.memory = zeros(c.num_heads, c.head_dim, c.value_head_dim)
        self.log_norm = mega.gamma.new_full((c.num_heads, c.head_dim), -math.inf)

    def __call__(self, x: Tensor, t: int, cos: Tensor, sin: Tensor) -> Tensor:
        c, mega = self.config, self.mega
        chunk, r = divmod(t, c.chunk_size)
        own = chunk % 2
        u = self.norm(x, t)
        h_re = self.q_re * self.h_re - self.q_im * self.h_im + self.p * u[:, None]
        self.h_im = self.q_re * self.h_im + self.q_im * self.h_re
        self.h_re = h_re
        ema = u + (self.g_re * self.h_re - self.g_im * self.h_im).sum(-1)
        mx = mega.rmsnorm(ema)
        z = F.rms_norm(mega.wz(mx).view(c.num_heads, -1), (c.head_dim,), eps=c.norm_eps).view(-1)
        q, k, aq, ak = (self.affine * z + mega.beta).view(4, c.num_heads, c.head_dim)
        v = F.silu(mega.wv(u)).view(c.num_heads, -1)
        gate = F.silu(mega.wr(mx))
        self.keys[own, :, r] = rotate(k, cos[r], sin[r], c.rope_heads)
        self.values[own, :, r] = v
        self.memory_keys[own, :, r] = ak
        query = rotate(q, cos[r], sin[r], c.rope_heads)
        scores = torch.bmm(self.keys[own, :, : r + 1], query[..., None])[..., 0]
        if chunk:
            far = rotate(q, cos[r + c.chunk_size], sin[r + c.chunk_size], c.rope_heads)
            previous = torch.bmm(self.keys[1 - own], far[..., None])[..., 0]
            top = torch.maximum(scores.amax(-1), previous.amax(-1))[:, None]
            near, far_weights = torch.exp(scores - top), torch.exp(previous - top)
            total = near.sum(-1) + far_weights.sum(-1)
            sca = torch.bmm(near[:, None], self.values[own, :, : r + 1])
            sca = torch.baddbmm(sca, far_weights[:, None], self.values[1 - own])[:, 0] / total[:, None]
        else:
            sca = torch.bmm(scores.softmax(-1)[:, None], self.values[own, :, : r + 1])[:, 0]
        awm = torch.bmm(aq.softmax(-1)[:, None], self.memory)[:, 0]
        merged = torch.addcmul(awm.view(-1), sca.reshape(-1), gate)
        return self.block.nffn(x + mega.wh1(mx) + mega.wh2(merged), x)

    def end_chunk(self, chunk: int) -> None:
        """The working-memory write."""
        if chunk == 0:
            return
        parity = (chunk + 1) % 2
        ak, v = self.memory_keys[parity], self.values[parity]
        error = v - torch.bmm(ak.softmax(-1), self.memory)
        update = torch.bmm(ak.softmax(1).transpose(1, 2), error)
        log_mass = ak.logsumexp(1)
        self.log_norm = torch.logaddexp(self.log_norm, log_mass)
        self.memory.lerp_(update, torch.exp(log_mass - self.log_norm)[..., None])


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotary embedding of x [H, dz] at one position."""
    even, odd = x[:heads, 0::2], x[:heads, 1::2]
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return rotated if heads == len(x) else torch.cat([rotated, x[heads:]])

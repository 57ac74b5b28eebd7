"""Shapes of the model's parts, as values: what decides a kernel besides the hardware and its operands' dtypes.

All have the letters of the specification (section 0), and are hashable: kernels are cached by them.
"""

from __future__ import annotations

from typing import NamedTuple


class TimestepNorm(NamedTuple):
    """Timestep decay norm (2.2): decayed moments of each slot, of `groups` (G) groups of `dim` (D) features."""

    dim: int
    groups: int
    # S: the slots of the state.
    slots: int
    # C: tokens of a chunk; a slot's position counts chunks and tokens of the last one.
    chunk_size: int
    # Decay of the means, and of the variances.
    betas: tuple[float, float]
    eps: float


class GroupNorm(NamedTuple):
    """RMS norm (2.4) or layer norm (2.8) of `groups` of `dim` (D) features, with a gain and shift if `affine`."""

    dim: int
    groups: int
    eps: float
    affine: bool


class EMA(NamedTuple):
    """Complex moving averages (2.3): `components` (N) of each of `dim` (D) channels, a state in each of S `slots`."""

    dim: int
    components: int
    slots: int


class Window(NamedTuple):
    """What attention (2.5, 2.6) and working memory (2.7) see of a slot: two chunks of keys and values, and a memory.

    Keys and memory keys have `key_dtype`, values `value_dtype`: int8 are codes with scales.
    """

    # Z, E, H, Hr: features of keys and of values over all heads; heads, and how many of them are rotated.
    z_dim: int
    value_dim: int
    heads: int
    rope_heads: int
    # C: tokens of a chunk. S: the slots of the state.
    chunk_size: int
    slots: int
    # Of the norm of z that queries and keys are made from.
    eps: float
    key_dtype: str
    value_dtype: str

    @property
    def head_dim(self) -> int:
        """dz: query and key features of one head."""
        return self.z_dim // self.heads

    @property
    def value_head_dim(self) -> int:
        """dv: value features of one head."""
        return self.value_dim // self.heads

    @property
    def scaled(self) -> bool:
        """Whether values are codes, which `value_scales` multiply."""
        return self.value_dtype == "int8"

    @property
    def keys(self) -> tuple[int, ...]:
        """The shape of keys, and of memory keys: two buffers of a chunk, taken in turn."""
        return self.slots, 2, self.chunk_size, self.z_dim

    @property
    def values(self) -> tuple[int, ...]:
        """The shape of values."""
        return self.slots, 2, self.chunk_size, self.value_dim

    @property
    def value_scales(self) -> tuple[int, ...]:
        """The shape of the scales of values: one for each token and head."""
        return self.slots, 2, self.chunk_size, self.heads

    @property
    def memory(self) -> tuple[int, ...]:
        """The shape of the memory."""
        return self.slots, self.heads, self.head_dim, self.value_head_dim

    @property
    def log_norm(self) -> tuple[int, ...]:
        """The shape of ℓ: the logarithm of the mass that each of the memory's features has taken in."""
        return self.slots, self.heads, self.head_dim

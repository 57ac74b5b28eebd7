"""Sums of four products of bytes in every lane of a vector, by the instruction that a hardware has for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.expressions import Expr
from gecko_mlc.tir_kernels.hardware import CPU, ByteDot


class Dot(NamedTuple):
    """`accumulate(sums, codes, x)`: sums int32 + Σ (code − zero) · x over the four bytes of each lane.

    `codes` are unsigned bytes in a vector of uint32 words, x four signed bytes above -128 in one int32 for all lanes.
    """

    zero: int
    accumulate: Callable[[Expr, Expr, Expr], Expr]


def byte_dot(hardware: CPU, largest_code: int) -> Dot:
    """The dot product of bytes of `hardware`, for codes up to `largest_code`."""
    lanes = hardware.lanes
    small = largest_code <= 127
    int32s, int8s, uint8s = f"int32x{lanes}", f"int8x{4 * lanes}", f"uint8x{4 * lanes}"

    def intrinsic(name: str, dtype: str, *arguments: Expr) -> Expr:
        return T.call_llvm_pure_intrin(dtype, T.llvm_lookup_intrinsic_id(name), *arguments)

    def everywhere(x: Expr) -> Expr:
        return T.reinterpret(int8s, T.broadcast(x, lanes))

    def centred(codes: Expr) -> Expr:
        """The codes as signed bytes, less 128 if they need it."""
        return T.reinterpret(int8s, codes if small else T.bitwise_xor(codes, T.broadcast(T.uint32(0x80808080), lanes)))

    def vnni(sums: Expr, codes: Expr, x: Expr) -> Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        return intrinsic(name, int32s, sums, T.reinterpret(uint8s, codes), everywhere(x))

    def neon(sums: Expr, codes: Expr, x: Expr) -> Expr:
        return intrinsic("llvm.aarch64.neon.sdot", int32s, sums, centred(codes), everywhere(x))

    def pairs(sums: Expr, codes: Expr, x: Expr) -> Expr:
        # Two products of an unsigned and a signed byte have to fit in 16 bits: small codes do, and |code − 128| · ±x.
        left, right = centred(codes), everywhere(x)
        if not small:
            none = T.broadcast(T.int8(0), 4 * lanes)
            left, right = T.Select(left < none, none - left, left), T.Select(left < none, none - right, right)
        multiply, add = {
            8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
            16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
        }[lanes]
        products = intrinsic(multiply, f"int16x{2 * lanes}", left, right)
        return sums + intrinsic(add, int32s, products, T.broadcast(T.int16(1), 2 * lanes))

    def plain(sums: Expr, codes: Expr, x: Expr) -> Expr:
        for byte in range(4):
            code = T.bitwise_and(T.shift_right(codes, T.broadcast(T.uint32(8 * byte), lanes)), T.uint32(255))
            signed = T.shift_right(T.shift_left(x, 24 - 8 * byte), 24)
            sums = sums + T.Cast(int32s, code) * T.broadcast(signed, lanes)
        return sums

    zero = 0 if small else 128
    return {
        ByteDot.VNNI: Dot(0, vnni),
        ByteDot.NEON: Dot(zero, neon),
        ByteDot.PAIRS: Dot(zero, pairs),
        ByteDot.PLAIN: Dot(0, plain),
    }[hardware.byte_dot]

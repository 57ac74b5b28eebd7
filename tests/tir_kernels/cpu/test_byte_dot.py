"""The instruction that dot products of bytes become."""

from __future__ import annotations

import pytest
import tvm

from gecko_mlc.compile.target import compile_target
from gecko_mlc.formats.group_quantization import GroupLayout
from gecko_mlc.formats.quantization import QUANTIZATIONS
from gecko_mlc.tir_kernels.cpu import linear
from gecko_mlc.tir_kernels.hardware import CPU


@pytest.mark.parametrize("scheme", ["q3f16_1", "q4f16_1", "q4f32_1", "q8f16_1"])
@pytest.mark.parametrize(
    ("host", "mcpu", "instruction"),
    [
        ("x86_64-linux-gnu", "znver4", "vpdpbusd"),
        ("x86_64-linux-gnu", "alderlake", "vpdpbusd"),
        ("x86_64-linux-gnu", "skylake-avx512", "vpmaddubsw"),
        ("x86_64-linux-gnu", "x86-64-v3", "vpmaddubsw"),
        ("aarch64-linux-gnu", "cortex-a76", "sdot"),
        ("aarch64-linux-gnu", "generic", None),
    ],
)
def test_instructions_follow_the_cpu(scheme: str, host: str, mcpu: str, instruction: str | None) -> None:
    target = compile_target("cpu", host, mcpu)
    assert isinstance(target.hardware, CPU)
    group = QUANTIZATIONS[scheme].group
    assert group is not None
    code_bits = 4 if group.bits == 3 else group.bits
    layout = GroupLayout(quantization=group, lanes=target.hardware.lanes, code_bits=code_bits)
    kernel = linear.linear(64, 32, layout, target.hardware)
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    assembly = tvm.compile(module, target=target.tvm_target).mod.inspect_source("asm")
    found = {name for name in ("vpdpbusd", "vpmaddubsw", "sdot") if name in assembly}
    assert found == ({instruction} if instruction else set())

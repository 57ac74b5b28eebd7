"""Decode: one token of each sequence. `tir_kernels.cuda` lists the kernels in their order."""

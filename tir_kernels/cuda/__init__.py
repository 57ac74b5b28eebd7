"""The kernels' CUDA forms: TensorIR bound to blocks and threads, over the oracles of `tir_kernels`."""

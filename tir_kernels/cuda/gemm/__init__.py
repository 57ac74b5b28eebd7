"""GEMM: tiles of matrices in shared memory, multiplied on the tensor cores or in fp32 FMAs."""

"""Gecko as launches of the CUDA kernels."""

from gecko_mlc.model.launch import Build


class CUDALaunches:
    """The parts of a function, each a method that launches its kernels."""

    def __init__(self, build: Build) -> None:
        self.build = build

"""gecko-mlc: Gecko language models, compiled ahead of time and run anywhere.

Importing this package is cheap: it brings in neither TVM nor PyTorch.
"""

__version__ = "0.1.0"

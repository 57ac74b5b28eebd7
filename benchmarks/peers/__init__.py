"""What the models are compared with: PyTorch Geckos, eager and compiled, and llama.cpp with a Llama of equal size."""

"""What is tested on a GPU: prepared on any machine with a compiler, run on one that needs none."""

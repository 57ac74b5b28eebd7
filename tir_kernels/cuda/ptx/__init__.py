"""Instructions that TensorIR has no loop for, as device functions."""

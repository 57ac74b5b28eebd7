"""What this machine has: its processor, its GPUs."""

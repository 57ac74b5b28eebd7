"""What reads and writes the state of slots."""

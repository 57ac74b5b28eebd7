"""From a prompt to text, token after token."""

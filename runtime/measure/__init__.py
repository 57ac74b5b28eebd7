"""How fast, how good, and what part of the device that is."""

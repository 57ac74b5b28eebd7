"""The recurrent state on a device: its memory and its slots."""

"""Folders that run models elsewhere."""

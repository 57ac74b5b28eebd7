"""Text: tokens, templates, stop strings, files of any length."""

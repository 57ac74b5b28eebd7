"""The errors a user can do something about."""


class GeckoError(Exception):
    """Something about a file, an option or this machine is not as it must be; the message says what."""

"""The errors a user can do something about."""


class GeckoError(Exception):
    """Something about a file, an option or this machine is not as it must be; the message says what."""


class OptionError(GeckoError):
    """The value of an option is not as it must be: `option` says of which one, `reason` what is wrong."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option, self.reason = option, reason

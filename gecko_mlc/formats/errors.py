"""The errors a user can do something about."""

# Of a message, so much at its beginning and at its end.
_SHOWN = 2000


class GeckoError(Exception):
    """Something about a file, an option or this machine is not as it must be; the message says what.

    It ends with `making`: what mends it where models are made, which a package is not. It may quote what comes from
    anywhere: what a terminal would obey or cannot write is escaped, as `repr` does, and what is endless is cut in its
    middle.
    """

    def __init__(self, message: str, making: str = "") -> None:
        super().__init__(*filter(None, (message, making)))
        self.message, self.making = message, making

    def __str__(self) -> str:
        text = "; ".join(self.args)
        if len(text) > 2 * _SHOWN:
            text = f"{text[:_SHOWN]} … {text[-_SHOWN:]}"
        return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class OptionError(GeckoError):
    """The value of an option is not as it must be: `option` says of which one, `reason` what is wrong."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option, self.reason = option, reason


class DamagedError(GeckoError):
    """A file is not what was written: its checksum differs."""


class LogitsError(GeckoError):
    """Logits that are no numbers: nothing can be drawn from them, and what they say of a text means nothing."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"the logits after token {position:,} are no numbers: the model has weights that are none, which `gecko-mlc"
            " info --check` finds, or computes with larger ones than its dtype holds; convert with q0f32 or q0bf16"
        )

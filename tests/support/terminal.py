"""A command at a terminal: what it shows, and what is typed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from pathlib import Path

from support.commands import COMMAND


class Terminal:
    """A command that runs at a terminal of its own, of so many columns."""

    def __init__(self, home: Path, *arguments: str, columns: int = 80, **environment: str) -> None:
        added = {"GECKO_MLC_HOME": str(home), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            os.environ.pop("COLUMNS", None)
            os.environ.update(added)
            os.execv(COMMAND[0], [*COMMAND, *arguments])
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._written, self._seen = b"", 0

    @property
    def shown(self) -> str:
        """All that was written, without what moves and colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._written.decode(errors="replace"))

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Returns when `text` was written, after what was waited for before."""
        end = time.monotonic() + seconds
        while (place := self._written.find(text.encode(), self._seen)) < 0:
            assert time.monotonic() < end, f"no {text!r} in {self.shown!r}"
            assert self._read(), f"it ended without {text!r}: {self.shown!r}"
        self._seen = place + len(text.encode())

    def type(self, keys: str | bytes) -> None:
        """As if these keys were pressed."""
        os.write(self._terminal, keys.encode() if isinstance(keys, str) else keys)

    def signal(self, number: int) -> None:
        """As another process would."""
        os.kill(self._process, number)

    def end(self, seconds: float = 60) -> int:
        """The exit code, once it ended by itself."""
        end = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < end, f"it goes on: {self.shown!r}"
        _, status = os.waitpid(self._process, 0)
        os.close(self._terminal)
        assert "Traceback" not in self.shown, self.shown
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        """Take what was written in the meantime; False when nothing will be any more."""
        ready, _, _ = select.select([self._terminal], [], [], 0.1)
        if not ready:
            return True
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # How Linux says that the other side is closed.
            return False
        self._written += data
        return bool(data)

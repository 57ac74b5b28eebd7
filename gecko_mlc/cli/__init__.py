"""The command line. One module a command; `app` joins them, and `main` tells how a command ended.

Importing this imports next to nothing: what goes wrong in the imports of commands is told as what goes wrong in them.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors of the user's end in one message and exit code 1."""
    from gecko_mlc.search_path import import_path

    # First, so that nothing of the current folder is imported.
    sys.path[:] = import_path()
    from gecko_mlc.cli.ending import ended
    from gecko_mlc.cli.interrupts import handle_signals
    from gecko_mlc.cli.streams import prepare_streams
    from gecko_mlc.runtime.interrupts import interrupts_later

    prepare_streams()
    handle_signals()
    try:
        with interrupts_later():
            from gecko_mlc.cli.app import app
        try:
            app()
        finally:
            sys.stdout.flush()
    except BaseException as error:
        code = ended(error)
    sys.exit(code)

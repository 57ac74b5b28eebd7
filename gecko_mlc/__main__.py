"""`python -m gecko_mlc`."""

from gecko_mlc.cli import main

main()

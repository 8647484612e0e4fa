"""``python -m ivdtool``."""

from ivdtool.cli import main

main()

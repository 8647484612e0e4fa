"""``python -m ivdtool``."""

from ivdtool.cli import main

if __name__ == "__main__":  # a process that `batch` spawns imports this module, too
    main()

"""`python -m tfaccel` is the same as `tfaccel`."""

import sys

from tfaccel.cli.main import main

if __name__ == "__main__":
    status = main()
    if status:  # `python -i` would tell of any exit
        sys.exit(status)

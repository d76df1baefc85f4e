"""The command line's exit statuses."""

EXIT_FAILED = 1
# As argparse, and so most programs written in Python, has it.
EXIT_USAGE = 2
# 128 + SIGINT, as shells have it.
EXIT_INTERRUPTED = 130

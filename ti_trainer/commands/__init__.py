"""The command line, a file a command: `add_arguments(parser)` and `run(args)`."""

import os

PROGRAM = os.environ.get("TI_TRAINER_PROGRAM", "python -m ti_trainer")  # as the user calls it; install.py says so
INTERRUPTED = 130  # exit code: stopped by the user, all saved

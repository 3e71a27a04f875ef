"""The command line: one module per command, each with HELP, `add_arguments(parser)` and `run(args)`.

Only the module of the command that runs is imported, and it imports heavy packages inside of `run`.
"""

import os

PROGRAM = os.environ.get("TI_TRAINER_PROGRAM", "python -m ti_trainer")  # as the user calls it; install.py sets it
INTERRUPTED = 130  # exit code: stopped by the user, everything is saved

"""The command line: one module per command, each with HELP, `add_arguments(parser)` and `run(args)`.

Only the module of the command that runs is imported, and it imports heavy packages inside of `run`.
"""

import os
import sys
from pathlib import Path

_STARTED_AS = "ti-trainer" if Path(sys.argv[0]).stem == "ti-trainer" else "python -m ti_trainer"
PROGRAM = os.environ.get("TI_TRAINER_PROGRAM", _STARTED_AS)  # the program's name in messages; install.py sets the variable
INTERRUPTED = 130  # exit code: stopped by the user, everything is saved

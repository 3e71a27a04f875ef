"""The command line, a file a command: `add_arguments(parser)` and `run(args)`."""

import os
import sys
from pathlib import Path

_STARTED_AS = "ti-trainer" if Path(sys.argv[0]).stem == "ti-trainer" else "python -m ti_trainer"
PROGRAM = os.environ.get("TI_TRAINER_PROGRAM", _STARTED_AS)  # what messages suggest to type; install.py sets the variable
INTERRUPTED = 130  # exit code: stopped by the user, all saved

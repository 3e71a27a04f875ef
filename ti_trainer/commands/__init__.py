"""The command line, a file a command: `add_arguments(parser)` and `run(args)`."""

INTERRUPTED = 130  # exit code: stopped by the user, all saved

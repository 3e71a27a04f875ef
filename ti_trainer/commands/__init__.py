"""The command line, a file a command: `add_arguments(parser)` and `run(args)`."""

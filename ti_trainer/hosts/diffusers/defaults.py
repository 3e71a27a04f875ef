"""Default values of StandaloneHost, which the command line declares its arguments with; imports nothing heavy."""

from pathlib import Path

MODEL = "embedded"
DEVICE = "auto"
EMBEDDINGS_DIR = Path("embeddings")
LOG_DIR = Path("textual_inversion")

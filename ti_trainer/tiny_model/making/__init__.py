"""Scripts that made the embedded model and that measure it."""

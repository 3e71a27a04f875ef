"""The bench command's measurements and the other trainers that it runs."""

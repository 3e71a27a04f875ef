"""Captioners: each writes a caption or tags for an image."""

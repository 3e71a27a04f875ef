"""Captioners: what writes a caption or tags for an image."""

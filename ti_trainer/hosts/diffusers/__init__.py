"""Stable Diffusion as the diffusers library loads it."""

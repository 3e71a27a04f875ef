"""Both seams, over whoever has the model: `diffusers` for the shell and the standalone page."""

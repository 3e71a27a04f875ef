"""TI Trainer: Textual Inversion for Stable Diffusion. Importing it does nothing."""

__version__ = "0.1.0"

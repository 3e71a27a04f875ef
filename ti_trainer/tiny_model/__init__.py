"""The tiny Stable Diffusion that ships with us, images to train it on, and the code that made both."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
DEMO = Path(__file__).parent / "demo"

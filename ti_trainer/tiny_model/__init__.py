"""The tiny Stable Diffusion model and the demo images that are included, and the code that made both."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
DEMO = Path(__file__).parent / "demo"

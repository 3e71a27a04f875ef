"""Where the page's style and scripts and the prompt templates are: in a clone's top folder, or in the installed package."""

from pathlib import Path

_INSTALLED = Path(__file__).parent / "_resources"  # where a wheel has them: see pyproject.toml
RESOURCES = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1]

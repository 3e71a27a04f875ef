"""How the tiny model was made and measured."""

"""How the tiny model was trained, and how good it is."""

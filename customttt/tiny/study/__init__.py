"""What the three stages do in the tiny world, scored against the rendered truth."""

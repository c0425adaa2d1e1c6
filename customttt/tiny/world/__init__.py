"""The rendered world: subjects, motions, scenes, captions, and the example data."""

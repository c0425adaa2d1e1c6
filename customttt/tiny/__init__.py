"""The tiny world: a rendered miniature in which the whole method runs on two CPU cores."""

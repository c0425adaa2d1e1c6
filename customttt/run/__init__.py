"""How a stage is run: flags, data, loop, checkpoints, contact sheets."""

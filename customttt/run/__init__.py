"""What every command shares: flags, the training loop, checkpoints."""

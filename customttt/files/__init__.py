"""Weight files, ours and everybody's: reading, writing, and what each layout calls a tensor."""

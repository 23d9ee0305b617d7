"""Find what is wrong with a config, its data and its checkpoints."""

"""Look at the attention of a model."""

"""Use a model: predict, export, count."""

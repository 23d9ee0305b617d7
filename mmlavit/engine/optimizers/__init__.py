"""Constructors of optimizer wrappers."""

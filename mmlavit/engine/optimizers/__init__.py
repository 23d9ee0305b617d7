"""Optimizer wrappers and what mixed precision needs."""

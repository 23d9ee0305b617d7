"""Hooks."""

from .diagonality_loss_hook import DiagonalityLossHook, attach_diagonality_loss
from .strict_load_hook import StrictLoadHook

__all__ = ['DiagonalityLossHook', 'StrictLoadHook', 'attach_diagonality_loss']

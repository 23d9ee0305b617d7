"""Predict with the inferencer of a toolbox, paint, and collect machine-readable results."""

from .base import Predictor
from .build import build_predictor

__all__ = ['Predictor', 'build_predictor']

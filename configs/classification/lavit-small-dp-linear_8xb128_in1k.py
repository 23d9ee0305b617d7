# Ablation: the diagonality-preserving loss as published, linear in the logits and unbounded below.
_base_ = './lavit-small_8xb128_in1k.py'

custom_hooks = [dict(type='mmlavit.DiagonalityLossHook', form='linear')]

# Ablation: the diagonality-preserving loss as published, linear in the logits and unbounded below.
# On CIFAR-10 and Shapes it ends at chance: docs/ablations.md.
_base_ = './lavit-small_8xb128_in1k.py'

custom_hooks = [dict(type='mmlavit.DiagonalityLossHook', form='linear')]

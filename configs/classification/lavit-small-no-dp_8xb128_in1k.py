# Ablation: no diagonality-preserving loss.
_base_ = './lavit-small_8xb128_in1k.py'

custom_hooks = []

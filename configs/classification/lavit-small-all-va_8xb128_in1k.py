# Ablation: vanilla attention in every layer. There is no transformed map left for the DP loss.
_base_ = './lavit-small_8xb128_in1k.py'

model = dict(backbone=dict(less_attention=False))
custom_hooks = []

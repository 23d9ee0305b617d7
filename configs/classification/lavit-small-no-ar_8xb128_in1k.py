# Ablation: no attention residual between stages.
_base_ = './lavit-small_8xb128_in1k.py'

model = dict(backbone=dict(attention_residual=False))

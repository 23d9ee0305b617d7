# The all-VA baseline of the quick start's classifier (docs/attention.md): vanilla attention in all
# layers. There is no transformed map left for the DP loss.
_base_ = './lavit-nano_shapes-cls.py'

model = dict(backbone=dict(less_attention=False))
custom_hooks = []

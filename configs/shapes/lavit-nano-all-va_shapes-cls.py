# The all-VA twin of the quick start's classifier, to be laid beside it (docs/attention.md): vanilla
# attention in every layer. There is no transformed map left for the DP loss.
_base_ = './lavit-nano_shapes-cls.py'

model = dict(backbone=dict(less_attention=False))
custom_hooks = []

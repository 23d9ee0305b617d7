# The learning rate decays layer by layer towards the input: 0.9 for the last of 16 blocks,
# 0.9^17 = 0.17 for the first embedding. No run stands behind the rate.
_base_ = './lavit-small_upernet_8xb2-160k_ade20k-512x512.py'

optim_wrapper = dict(
    constructor='mmlavit.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
)

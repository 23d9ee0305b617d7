# 1200 / 32 = 38 iterations an epoch, 304 in all.
train_cfg = dict(type='mmlavit.ResumableEpochLoop', max_epochs=8, val_interval=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    # fused: one pass over the weights, where steps are short
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=40),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        T_max=8,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)

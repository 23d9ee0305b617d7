# LaViT-nano classifies CIFAR-10, on two CPU cores.
_base_ = [
    '../_base_/models/lavit_cls.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/runtimes/mmpretrain.py',
]

model = dict(
    # the maps of a 64x64 image have 16, 8, 4 and 2 rows: nothing is padded
    backbone=dict(arch='nano', drop_path_rate=0.0, window_size=(8, 8, 4, 2)),
    head=dict(num_classes=10, in_channels=256),
    # the means of the detectors and segmentors that start from this one
    data_preprocessor=dict(
        num_classes=10,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    train_cfg=None,
)

train_cfg = dict(type='mmlavit.ResumableEpochLoop', max_epochs=10, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        T_max=10,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=64)

# 1 would turn the attention off (docs/ablations.md)
custom_hooks = [dict(type='mmlavit.DiagonalityLossHook', loss_weight=0.01)]

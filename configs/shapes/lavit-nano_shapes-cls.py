# Quick start: LaViT-nano classifies Shapes (circle, square, triangle), 1200 images of 96x96 px.
# About 2 minutes on 2 CPU cores.
_base_ = [
    '../_base_/models/lavit_cls.py',
    '../_base_/datasets/shapes.py',
    '../_base_/runtimes/mmpretrain.py',
]

model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.0),
    head=dict(num_classes=3, in_channels=256),
    data_preprocessor=dict(
        num_classes=3,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    train_cfg=None,
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=32,
    # a worker would take a core from torch, where there are two, and small images are read at once
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root=f'{_base_.data_root}/classification',
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root=f'{_base_.data_root}/classification',
        data_prefix='val',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator

# 1200 / 32 = 38 iterations an epoch, 304 in all
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

custom_hooks = [dict(type='mmlavit.DiagonalityLossHook')]
default_hooks = dict(
    logger=dict(interval=10),
    visualization=dict(rescale_factor=3),
)

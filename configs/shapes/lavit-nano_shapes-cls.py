# Quick start: LaViT-nano classifies Shapes (circle, square, triangle), 1200 images of 96x96 px.
# About 2 minutes on 2 CPU cores.
_base_ = [
    '../_base_/models/lavit_cls.py',
    '../_base_/datasets/shapes.py',
    '../_base_/schedules/shapes_classification.py',
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

custom_hooks = [dict(type='mmlavit.DiagonalityLossHook')]
default_hooks = dict(
    logger=dict(interval=10),
    visualization=dict(rescale_factor=3),
)

# LaViT-nano classifies CIFAR-10, on two CPU cores.
_base_ = [
    '../_base_/models/lavit_cls.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/shapes_classification.py',
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

train_cfg = dict(max_epochs=10, val_interval=1)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 100
param_scheduler[1].T_max = 10
auto_scale_lr = dict(base_batch_size=64)

custom_hooks = [dict(type='mmlavit.DiagonalityLossHook')]

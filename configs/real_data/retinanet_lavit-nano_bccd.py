# RetinaNet with LaViT-nano on BCCD: see faster-rcnn_lavit-nano_bccd.py.
_base_ = [
    '../_base_/models/retinanet_lavit_fpn.py',
    '../_base_/datasets/bccd_256x192.py',
    '../_base_/schedules/bccd_24e.py',
    '../_base_/runtimes/mmdet.py',
]

model = dict(
    backbone=dict(
        arch='nano',
        window_size=(8, 8, 4, 2),  # the classifier's, so that its weights fit as they are
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/lavit-nano_cifar10/epoch_10.pth'),
    ),
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    bbox_head=dict(
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=2),  # cells are 12 to 100 px wide at this size
    ),
)
default_hooks = dict(logger=dict(interval=10))

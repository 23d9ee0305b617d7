# Semantic FPN with LaViT-nano on Shapes: see upernet_lavit-nano_shapes.py.
_base_ = [
    '../_base_/models/semantic-fpn_lavit.py',
    '../_base_/datasets/shapes_ade20k.py',
    '../_base_/schedules/shapes_segmentation.py',
    '../_base_/runtimes/mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(
        arch='nano',
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/lavit-nano_shapes-cls/epoch_8.pth'),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        num_classes=4,
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=675))

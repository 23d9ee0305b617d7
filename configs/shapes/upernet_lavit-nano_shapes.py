# Quick start: UperNet with LaViT-nano on Shapes, 400 images of 160x160 px. About 4 minutes on 2 CPU
# cores. The backbone starts from the Shapes classifier: train lavit-nano_shapes-cls.py first.
_base_ = [
    '../_base_/models/upernet_lavit.py',
    '../_base_/datasets/shapes_ade20k.py',
    '../_base_/schedules/shapes_segmentation.py',
    '../_base_/runtimes/mmseg.py',
]

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(
        arch='nano',
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/lavit-nano_shapes-cls/epoch_8.pth'),
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, num_classes=4, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=4, norm_cfg=norm_cfg),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=675))

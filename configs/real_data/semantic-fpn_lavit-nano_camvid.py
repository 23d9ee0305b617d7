# Semantic FPN with LaViT-nano on CamVid: see upernet_lavit-nano_camvid.py.
_base_ = [
    '../_base_/models/semantic-fpn_lavit.py',
    '../_base_/datasets/camvid_240x180.py',
    '../_base_/schedules/camvid_1k.py',
    '../_base_/runtimes/mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=(180, 240)),
    backbone=dict(
        arch='nano',
        window_size=(8, 8, 4, 2),  # the classifier's, so that its weights fit as they are
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/lavit-nano_cifar10/epoch_10.pth'),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        num_classes=11,
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=500))

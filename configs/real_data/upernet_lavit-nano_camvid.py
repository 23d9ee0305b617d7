# UperNet with LaViT-nano on CamVid: 367 street scenes, in crops of 240x180 px, on two CPU cores.
# The backbone starts from the CIFAR-10 classifier: train lavit-nano_cifar10.py first.
_base_ = [
    '../_base_/models/upernet_lavit.py',
    '../_base_/datasets/camvid_240x180.py',
    '../_base_/schedules/camvid_1k.py',
    '../_base_/runtimes/mmseg.py',
]

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(180, 240)),
    backbone=dict(
        arch='nano',
        window_size=(8, 8, 4, 2),  # the classifier's, so that its weights fit as they are
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/lavit-nano_cifar10/epoch_10.pth'),
    ),
    decode_head=dict(
        in_channels=[32, 64, 128, 256], channels=64, num_classes=11, norm_cfg=norm_cfg
    ),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=11, norm_cfg=norm_cfg),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=500))

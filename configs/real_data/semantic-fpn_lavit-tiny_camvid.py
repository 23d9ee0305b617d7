# Semantic FPN with LaViT-tiny on CamVid, in crops of 480x360 px, on one GPU.
# The backbone starts from the CIFAR-10 classifier: train lavit-tiny_cifar10.py first.
_base_ = [
    '../_base_/models/semantic-fpn_lavit.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/camvid_4k.py',
    '../_base_/runtimes/mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=(360, 480)),
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='work_dirs/lavit-tiny_cifar10/epoch_100.pth'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
    decode_head=dict(num_classes=11),
)
train_dataloader = dict(batch_size=16, num_workers=8)
default_hooks = dict(checkpoint=dict(interval=1000))

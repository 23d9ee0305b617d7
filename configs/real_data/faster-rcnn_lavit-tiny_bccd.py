# Faster R-CNN with LaViT-tiny on BCCD at its own 640x480 px, on one GPU.
# The backbone starts from the CIFAR-10 classifier: train lavit-tiny_cifar10.py first.
_base_ = [
    '../_base_/models/faster-rcnn_lavit_fpn.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/bccd_36e.py',
    '../_base_/runtimes/mmdet.py',
]

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='work_dirs/lavit-tiny_cifar10/epoch_100.pth'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
    roi_head=dict(bbox_head=dict(num_classes=3)),
)
train_dataloader = dict(batch_size=8, num_workers=4)

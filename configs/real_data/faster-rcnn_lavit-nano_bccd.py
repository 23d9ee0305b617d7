# Faster R-CNN with LaViT-nano finds blood cells: BCCD, 292 images at 256x192 px, on two CPU cores.
# The backbone starts from the CIFAR-10 classifier: train lavit-nano_cifar10.py first.
_base_ = [
    '../_base_/models/faster-rcnn_lavit_fpn.py',
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
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4]),  # cells are 12 to 100 px wide at this size
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=3),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
default_hooks = dict(logger=dict(interval=10))

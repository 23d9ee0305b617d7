# Quick start: Mask R-CNN with LaViT-nano on Shapes, 400 images of 160x160 px. About 6 minutes on 2
# CPU cores. The backbone starts from the Shapes classifier: train lavit-nano_shapes-cls.py first.
_base_ = [
    '../_base_/models/mask-rcnn_lavit_fpn.py',
    '../_base_/datasets/shapes_coco.py',
    '../_base_/schedules/shapes_detection.py',
    '../_base_/runtimes/mmdet.py',
]

model = dict(
    backbone=dict(
        arch='nano',
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/lavit-nano_shapes-cls/epoch_8.pth'),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4]),  # shapes are 20 to 64 px wide
    ),
    roi_head=dict(
        # one sample a bin: shapes cover few cells, and RoIAlign runs on one CPU core
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=3),
        # masks of 20x20 cells, twice a RoI's: shapes are 20 to 64 px wide
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(output_size=10, sampling_ratio=1)),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=3),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32), mask_size=20),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=100),
        rcnn=dict(nms=dict(type='soft_nms'), max_per_img=20),  # shapes cover one another
    ),
)
default_hooks = dict(
    logger=dict(interval=10),
    visualization=dict(score_thr=0.5),
)

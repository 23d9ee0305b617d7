# RetinaNet with LaViT-nano on Shapes: see mask-rcnn_lavit-nano_shapes.py.
_base_ = [
    '../_base_/models/retinanet_lavit_fpn.py',
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
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    bbox_head=dict(num_classes=3, in_channels=64, feat_channels=64, stacked_convs=2),
    test_cfg=dict(max_per_img=20),
)
test_evaluator = val_evaluator = dict(metric='bbox')
default_hooks = dict(logger=dict(interval=10))

# RetinaNet, LaViT-small, COCO: 12 epochs, 8 GPUs x 2 = 16 images. The paper reports 46.7 AP, 68.3
# AP50 and 49.7 AP75. By 38 other backbones, expect 45.1 AP, give or take 2.6
# (docs/paper_to_code.md).
_base_ = [
    '../_base_/models/retinanet_lavit_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_adamw_1x.py',
    '../_base_/runtimes/mmdet.py',
]

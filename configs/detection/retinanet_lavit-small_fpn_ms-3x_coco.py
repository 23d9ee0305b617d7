# RetinaNet, LaViT-small, COCO: 36 epochs with multi-scale crops, 8 GPUs x 2 = 16 images. The paper
# reports 48.9 AP.
_base_ = [
    '../_base_/models/retinanet_lavit_fpn.py',
    '../_base_/datasets/coco_detection_ms-crop.py',
    '../_base_/schedules/coco_adamw_3x.py',
    '../_base_/runtimes/mmdet.py',
]

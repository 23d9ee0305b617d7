# Mask R-CNN, LaViT-small, COCO: 36 epochs with multi-scale crops, 8 GPUs x 2 = 16 images.
_base_ = [
    '../_base_/models/mask-rcnn_lavit_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/coco_adamw_3x.py',
    '../_base_/runtimes/mmdet.py',
]

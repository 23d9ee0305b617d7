# Mask R-CNN, LaViT-small, COCO: 12 epochs, 8 GPUs x 2 = 16 images.
_base_ = [
    '../_base_/models/mask-rcnn_lavit_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_adamw_1x.py',
    '../_base_/runtimes/mmdet.py',
]

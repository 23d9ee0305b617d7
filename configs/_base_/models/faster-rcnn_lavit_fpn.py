# Faster R-CNN with LaViT-small.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', './lavit_det.py']

model = _base_.lavit_det

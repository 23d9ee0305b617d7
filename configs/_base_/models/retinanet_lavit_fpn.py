# RetinaNet with LaViT-small.
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './lavit_det.py']

model = _base_.lavit_det
# the levels that the FPN takes, so that every parameter is used
model.backbone.out_indices = (1, 2, 3)
model.neck = dict(in_channels=[128, 320, 640], start_level=0)

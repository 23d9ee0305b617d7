# The paper reports 46.2 AP.
_base_ = './retinanet_lavit-small_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='work_dirs/lavit-tiny_8xb128_in1k/epoch_300.pth'),
    ),
    neck=dict(in_channels=[128, 320, 512]),
)

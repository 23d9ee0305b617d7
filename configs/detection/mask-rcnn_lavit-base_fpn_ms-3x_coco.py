_base_ = './mask-rcnn_lavit-small_fpn_ms-3x_coco.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint='work_dirs/lavit-base_8xb128_in1k/epoch_300.pth'),
    ),
)

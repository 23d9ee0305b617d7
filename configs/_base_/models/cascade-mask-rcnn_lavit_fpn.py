# Cascade Mask R-CNN with LaViT-small. No weights are published: `checkpoint` is where pre-training
# leaves its own; init_cfg=None trains from scratch.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=1),  # the backbone takes any size
    backbone=dict(
        _delete_=True,
        type='mmlavit.LaViT',
        arch='small',
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/lavit-small_8xb128_in1k/epoch_300.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 640]),
)

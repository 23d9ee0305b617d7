# What a detector of mmdet takes from LaViT-small: `lavit_det` overrides parts of its model. No
# weights are published: `checkpoint` is where pre-training leaves its own; init_cfg=None trains
# from scratch.
lavit_det = dict(
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

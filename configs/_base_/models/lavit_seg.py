# What UperNet and Semantic FPN share. No weights are published: `checkpoint` is where pre-training
# leaves its own; init_cfg=None trains from scratch.
#
# mmseg's visualization_cam.py looks for mean and std at the top.
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=(512, 512),
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='mmlavit.LaViT',
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/lavit-small_8xb128_in1k/epoch_300.pth',
            prefix='backbone.',
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

_base_ = './lavit-small_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='work_dirs/lavit-tiny_8xb128_in1k/epoch_300.pth'),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)

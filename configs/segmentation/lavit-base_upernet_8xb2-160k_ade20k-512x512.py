_base_ = './lavit-small_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint='work_dirs/lavit-base_8xb128_in1k/epoch_300.pth'),
    )
)

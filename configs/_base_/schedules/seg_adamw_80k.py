# 80k iterations with AdamW. 8 GPUs x 4 = 32 images, for which lr is 2e-4.
_base_ = './seg_adamw_160k.py'

optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=1000, end=80000, by_epoch=False),
]
train_cfg = dict(max_iters=80000, val_interval=8000)
auto_scale_lr = dict(base_batch_size=32)

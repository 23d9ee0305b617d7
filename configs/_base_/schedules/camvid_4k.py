# 4000 iterations of 16 images.
_base_ = './camvid_1k.py'

train_cfg = dict(max_iters=4000, val_interval=500)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = 4000
auto_scale_lr = dict(base_batch_size=16)

# 292 / 4 = 73 iterations an epoch, 1752 in all.
_base_ = './shapes_detection.py'

train_cfg = dict(max_epochs=24, val_interval=4)
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = 24
auto_scale_lr = dict(base_batch_size=4)

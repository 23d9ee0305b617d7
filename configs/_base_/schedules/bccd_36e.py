# 292 / 8 = 37 iterations an epoch, 1332 in all.
_base_ = './bccd_24e.py'

train_cfg = dict(max_epochs=36)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = 36
auto_scale_lr = dict(base_batch_size=8)

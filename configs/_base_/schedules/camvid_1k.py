# 1000 iterations of 4 images.
_base_ = './shapes_segmentation.py'

train_cfg = dict(max_iters=1000, val_interval=250)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = 1000
auto_scale_lr = dict(base_batch_size=4)

# mmdet's 12 epochs with AdamW. 8 GPUs x 2 = 16 images, for which lr is 1e-4.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

train_cfg = dict(type='mmlavit.ResumableEpochLoop')
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]

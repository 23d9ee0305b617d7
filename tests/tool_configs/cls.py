_base_ = [__import__('mmlavit').config_path('_base_/runtimes/mmpretrain.py')]
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=3, mean=[127.0] * 3, std=[60.0] * 3),
    backbone=dict(
        type='ResNet', depth=18, stem_channels=8, base_channels=8, norm_cfg=dict(type='SyncBN')
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=64),
)
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=3,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='shapes/classification',
        data_prefix='train',
        pipeline=test_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=3,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='shapes/classification',
        data_prefix='val',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=1)
train_cfg = dict(type='mmlavit.ResumableEpochLoop', max_epochs=1, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02))
auto_scale_lr = dict(base_batch_size=12)
default_hooks = dict(logger=dict(interval=1))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]

_base_ = [__import__('mmlavit').config_path('_base_/runtimes/mmseg.py')]
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', size=(64, 64), seg_pad_val=255, mean=[127.0] * 3, std=[60.0] * 3
    ),
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
    decode_head=dict(
        type='FCNHead',
        in_channels=64,
        in_index=3,
        channels=8,
        num_convs=1,
        num_classes=4,
        norm_cfg=dict(type='SyncBN'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
dataset = dict(
    type='BaseSegDataset',
    data_root='shapes/ade20k',
    img_suffix='.png',
    reduce_zero_label=False,
    metainfo=dict(
        classes=('background', 'circle', 'square', 'triangle'),
        palette=[[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]],
    ),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ],
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'), **dataset
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        **dataset,
    ),
)
test_evaluator = dict(type='IoUMetric')
train_cfg = dict(type='mmlavit.ResumableIterLoop', max_iters=2)
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(checkpoint=dict(interval=2))
tta_model = None

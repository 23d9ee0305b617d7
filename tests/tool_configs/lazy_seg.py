from mmcv.transforms import LoadImageFromFile
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.optim import OptimWrapper
from mmengine.runner import LogProcessor, TestLoop
from mmseg.datasets import BaseSegDataset, LoadAnnotations, PackSegInputs
from mmseg.evaluation import IoUMetric
from mmseg.models import CrossEntropyLoss, EncoderDecoder, FCNHead, SegDataPreProcessor
from torch.nn import BatchNorm2d
from torch.optim import SGD

from mmlavit.engine import ResumableIterLoop
from mmlavit.models import LaViT

with read_base():
    from .lazy_runtime import *

default_scope = 'mmseg'
default_hooks.update(checkpoint=dict(default_hooks['checkpoint'], by_epoch=False, interval=2))
log_processor = dict(type=LogProcessor, by_epoch=False)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor, size=(64, 64), seg_pad_val=255, mean=[127.0] * 3, std=[60.0] * 3
    ),
    backbone=dict(type=LaViT, arch='nano'),
    decode_head=dict(
        type=FCNHead,
        in_channels=256,
        in_index=3,
        channels=8,
        num_convs=1,
        num_classes=4,
        norm_cfg=dict(type=BatchNorm2d),
        loss_decode=dict(type=CrossEntropyLoss),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
metainfo = dict(
    classes=('background', 'circle', 'square', 'triangle'),
    palette=[[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]],
)
pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackSegInputs)]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(
        type=BaseSegDataset,
        data_root='shapes/ade20k',
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        img_suffix='.png',
        reduce_zero_label=False,
        metainfo=metainfo,
        pipeline=pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=BaseSegDataset,
        data_root='shapes/ade20k',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        img_suffix='.png',
        reduce_zero_label=False,
        metainfo=metainfo,
        pipeline=pipeline,
    ),
)
test_evaluator = dict(type=IoUMetric)
train_cfg = dict(type=ResumableIterLoop, max_iters=2)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))

from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from mmengine.runner import TestLoop, ValLoop
from mmpretrain.datasets import CustomDataset, LoadImageFromFile, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import (
    ClsDataPreprocessor,
    GlobalAveragePooling,
    ImageClassifier,
    LinearClsHead,
)
from torch.optim import SGD

from mmlavit.engine import DiagonalityLossHook, ResumableEpochLoop
from mmlavit.models import LaViT

with read_base():
    from .lazy_runtime import *

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(
        type=ClsDataPreprocessor, num_classes=3, mean=[127.0] * 3, std=[60.0] * 3
    ),
    backbone=dict(type=LaViT, arch='nano', out_indices=(3,)),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=3, in_channels=256),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=CustomDataset,
        data_root='shapes/classification',
        data_prefix='train',
        pipeline=[dict(type=LoadImageFromFile), dict(type=PackInputs)],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CustomDataset,
        data_root='shapes/classification',
        data_prefix='val',
        pipeline=[dict(type=LoadImageFromFile), dict(type=PackInputs)],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type=Accuracy, topk=1)
test_evaluator = val_evaluator
train_cfg = dict(type=ResumableEpochLoop, max_epochs=1)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
custom_hooks = [dict(type=DiagonalityLossHook)]

# The classifier of Shapes as a pure Python config: types are classes, and nothing is inherited.
from mmpretrain.datasets import CustomDataset, LoadImageFromFile, PackInputs
from mmpretrain.models import (
    ClsDataPreprocessor,
    GlobalAveragePooling,
    ImageClassifier,
    LinearClsHead,
)

from mmlavit.models import LaViT

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(
        type=ClsDataPreprocessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(type=LaViT, arch='nano', out_indices=(3,)),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=3, in_channels=256),
)
test_dataloader = dict(
    dataset=dict(type=CustomDataset, pipeline=[dict(type=LoadImageFromFile), dict(type=PackInputs)])
)

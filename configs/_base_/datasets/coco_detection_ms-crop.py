# mmdet's pipeline, with several scales and crops in the place of the one scale.
_base_ = ['mmdet::_base_/datasets/coco_detection.py', './ms-crop.py']

train_pipeline = [*_base_.train_pipeline[:2], _base_.ms_crop, *_base_.train_pipeline[3:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

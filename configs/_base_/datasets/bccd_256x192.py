# BCCD at 0.4 times its size.
_base_ = './bccd.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (256, 192)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (256, 192)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

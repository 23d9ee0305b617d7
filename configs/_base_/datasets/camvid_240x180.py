# CamVid in crops of a quarter of an image; it is tested on whole images.
_base_ = './camvid.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3].crop_size = (180, 240)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

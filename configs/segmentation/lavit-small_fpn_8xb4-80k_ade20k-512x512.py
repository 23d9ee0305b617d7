# Semantic FPN, LaViT-small, ADE20K: 80k iterations, 8 GPUs x 4 = 32 images. The paper reports 44.1
# mIoU. Its text does not state the schedule; 80k iterations of 16 images are usual.
_base_ = [
    '../_base_/models/semantic-fpn_lavit.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/seg_adamw_80k.py',
    '../_base_/runtimes/mmseg.py',
]

model = dict(backbone=dict(drop_path_rate=0.2))
train_dataloader = dict(batch_size=4)
default_hooks = dict(checkpoint=dict(interval=8000))

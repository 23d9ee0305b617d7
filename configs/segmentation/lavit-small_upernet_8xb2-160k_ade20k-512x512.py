# UperNet, LaViT-small, ADE20K: 160k iterations, 8 GPUs x 2 = 16 images. The paper reports 47.2 mIoU
# at one scale and 49.5 at several. Its text does not say whether images were flipped too, as
# `tools/test.py --tta` does.
_base_ = [
    '../_base_/models/upernet_lavit.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/seg_adamw_160k.py',
    '../_base_/runtimes/mmseg.py',
]

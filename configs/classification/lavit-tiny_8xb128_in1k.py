# LaViT-tiny on ImageNet-1k: 11.0 M parameters, 1.6 G multiply-adds. The paper reports 79.2 % top-1.
_base_ = './lavit-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.1), head=dict(in_channels=512))

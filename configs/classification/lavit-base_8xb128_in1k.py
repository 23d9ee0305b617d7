# LaViT-base on ImageNet-1k: 39.5 M parameters, 6.0 G multiply-adds. The paper reports 83.1 % top-1.
_base_ = './lavit-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.4))

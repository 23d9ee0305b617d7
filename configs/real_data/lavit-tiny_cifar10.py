# LaViT-tiny classifies CIFAR-10, on one GPU: Mixup, CutMix and ten times nano's epochs.
_base_ = './lavit-nano_cifar10.py'

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    head=dict(in_channels=512),
    train_cfg=dict(
        _delete_=True,
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)],
    ),
)
train_dataloader = dict(batch_size=128, num_workers=8)

train_cfg = dict(max_epochs=100)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1955  # five epochs of 391 iterations
param_scheduler[1].T_max = 100
auto_scale_lr = dict(base_batch_size=128)

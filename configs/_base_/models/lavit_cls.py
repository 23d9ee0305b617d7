# LaViT-small as an ImageNet classifier. Regularisation follows DeiT and Swin: label smoothing,
# Mixup and CutMix. The last map is pooled: a hierarchical backbone has no class token.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmlavit.LaViT', arch='small', out_indices=(3,), drop_path_rate=0.2),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=640,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        cal_acc=False,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

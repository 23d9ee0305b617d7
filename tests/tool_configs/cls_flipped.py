_base_ = 'cls.py'
test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomFlip', prob=1.0),
            dict(type='PackInputs'),
        ]
    )
)

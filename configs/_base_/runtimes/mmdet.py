_base_ = './common.py'

default_scope = 'mmdet'
default_hooks = dict(
    visualization=dict(type='DetVisualizationHook'),
    # RoIAlign and NMS of a GPU take no bfloat16, which mixed precision may hand them.
    float32_operators=dict(type='mmlavit.Float32OperatorsHook'),
)
visualizer = dict(type='DetLocalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

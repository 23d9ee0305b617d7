from mmengine.hooks import (
    CheckpointHook,
    DistSamplerSeedHook,
    IterTimerHook,
    LoggerHook,
    ParamSchedulerHook,
)

from mmlavit.engine import (
    DatasetCheckHook,
    FiniteLossHook,
    PortableRunner,
    StopHook,
    StrictLoadHook,
)

runner_type = PortableRunner
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, backend_args=dict(backend='mmlavit_atomic')),
    sampler_seed=dict(type=DistSamplerSeedHook),
    stop=dict(type=StopHook),
    finite_loss=dict(type=FiniteLossHook),
    strict_load=dict(type=StrictLoadHook),
    dataset_check=dict(type=DatasetCheckHook),
)

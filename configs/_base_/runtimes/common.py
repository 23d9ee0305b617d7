# What the three runtimes share: everything that protects a run stands here by name.
runner_type = 'mmlavit.PortableRunner'  # several processes run without a GPU, too
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        interval=1,
        # mmengine removes the outdated checkpoint before it writes the new one: with two of them
        # there is always a complete one.
        max_keep_ckpts=2,
        # A file gets its name when all of it is on the disk.
        backend_args=dict(backend='mmlavit_atomic'),
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    stop=dict(type='mmlavit.StopHook'),  # SIGTERM and Ctrl-C write a checkpoint, then end the run
    finite_loss=dict(type='mmlavit.FiniteLossHook'),  # stops before NaN reaches a checkpoint
    strict_load=dict(type='mmlavit.StrictLoadHook'),  # a checkpoint of another model stops the run
    dataset_check=dict(type='mmlavit.DatasetCheckHook'),  # labels must fit the model
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
# A run that is resumed draws the same images only where the seed is known from the start.
randomness = dict(seed=0)

"""What --cfg-options may change."""

import pytest
from mmengine.config import Config

from mmlavit.cli.overrides import merge_overrides
from mmlavit.errors import UserError

pytestmark = pytest.mark.usefixtures('isolated')


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('model.backbon.arch', "model has no key 'backbon'; close matches: backbone"),
        ('train_dataloadr.batch_size', 'close matches: train_dataloader'),
        ('wrok_dir', 'close matches: work_dir'),
        ('model.backbone.depth.stem', "'model.backbone.depth' is 18, not a dictionary or a list"),
        ('scheduler.7.end', "the config has no key 'scheduler'"),
        ('test_pipeline.2.type', "'test_pipeline' is a list of 2 elements"),
        ('test_pipeline.type', "expected an index below 2, found 'type'"),
    ],
)
def test_override_that_leads_nowhere_stops(key: str, message: str) -> None:
    """A misspelt path names itself and its close matches, and changes nothing."""
    cfg = Config.fromfile('cls.py')
    before = cfg.pretty_text
    with pytest.raises(UserError) as error:
        merge_overrides(cfg, {'train_cfg.max_epochs': 7, key: 1})
    assert str(error.value).startswith(f'--cfg-options {key}: ')
    assert message in str(error.value)
    assert cfg.pretty_text == before


@pytest.mark.parametrize(
    'key',
    [
        'model.backbone.depth',
        'model.backbone.with_cp',
        'model.backbone.init_cfg.checkpoint',
        'optim_wrapper.clip_grad.max_norm',
        'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult',
        'randomness.seed',
        'load_from',
        'find_unused_parameters',
        'custom_hooks.0.momentum',
    ],
)
def test_override_that_leads_somewhere_is_merged(key: str) -> None:
    """Existing keys, new arguments of what exists and the runner's own keys are allowed."""
    cfg = Config.fromfile('cls.py')
    merge_overrides(cfg, {key: 1})
    node = cfg
    for part in key.split('.'):
        node = node[int(part)] if isinstance(node, list) else node[part]
    assert node == 1

"""Training, validating, testing and resuming in two processes over gloo, by the launchers."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT, Run, load_tool, metrics_of, predictions
from distributed_jobs import TIMEOUT, free_port, launch
from mmengine.device import get_device

TRAIN, TEST = load_tool('train'), load_tool('test')
# a number of images that two processes cannot share evenly
TEST_IMAGES = 3


def options(layout: str, shapes: Path) -> list[str]:
    """For a short run that is tested on training scenes: there are more than two of them."""
    result = ['model.backbone.init_cfg=None', 'default_hooks.logger.interval=1', TIMEOUT]
    for split in ('train', 'val', 'test'):
        loader = f'{split}_dataloader'
        result += [
            f'{loader}.dataset.data_root={shapes / layout}',
            f'{loader}.batch_size={2 if split == "train" else 1}',
            f'{loader}.num_workers=0',
            f'{loader}.persistent_workers=False',
        ]
    return [*result, f'test_dataloader.dataset.indices={TEST_IMAGES}', 'train_cfg.val_interval=1']


@pytest.mark.slow
def test_two_processes_detect_as_one(
    shapes: Path, tmp_path: Path, isolated: None, run: Run
) -> None:
    """After a training with a validation, each image is tested once."""
    annotations = shapes / 'coco/annotations'
    config = str(ROOT / 'configs/shapes/mask-rcnn_lavit-nano_shapes.py')
    common = [
        *('--cfg-options', *options('coco', shapes), 'train_cfg.max_epochs=1'),
        'test_dataloader.dataset.ann_file=annotations/instances_train2017.json',
        'test_dataloader.dataset.data_prefix.img=train2017/',
        f'val_evaluator.ann_file={annotations / "instances_val2017.json"}',
        f'test_evaluator.ann_file={annotations / "instances_train2017.json"}',
    ]
    trained = tmp_path / 'two processes'
    output = launch('dist_train.sh', config, '2', '--work-dir', str(trained), *common)
    assert '2 processes work together over gloo' in output
    assert output.count('coco/bbox_mAP: ') == output.count('coco/segm_mAP: ') == 1
    checkpoint = str(trained / 'epoch_1.pth')
    # 4 scenes in batches of 2 in 2 processes
    assert torch.load(checkpoint, weights_only=False)['meta']['iter'] == 1
    common = ['--work-dir', str(tmp_path / 'tested'), *common]
    metrics = metrics_of(run(TEST, config, checkpoint, '--out', 'one.pkl', *common))
    output = launch('dist_test.sh', config, checkpoint, '2', '--out', 'two.pkl', *common)
    assert metrics_of(output) == metrics
    one, two = predictions('one.pkl'), predictions('two.pkl')
    assert len({image['img_path'] for image in one}) == TEST_IMAGES
    for found, expected in zip(two, one, strict=True):
        assert found['img_path'] == expected['img_path']
        found, expected = found['pred_instances'], expected['pred_instances']
        assert len(expected['scores']) and torch.equal(found['scores'], expected['scores'])
        assert torch.equal(found['bboxes'], expected['bboxes'])
        assert found['masks'] == expected['masks']


@pytest.mark.slow
def test_two_processes_segment_as_one(
    shapes: Path, tmp_path: Path, isolated: None, run: Run
) -> None:
    """After a training that was resumed; epochs are resumed in test_faults_together.py."""
    config = str(ROOT / 'configs/shapes/upernet_lavit-nano_shapes.py')
    common = [
        *('--cfg-options', *options('ade20k', shapes), 'default_hooks.checkpoint.interval=1'),
        'test_dataloader.dataset.data_prefix.img_path=images/training',
        'test_dataloader.dataset.data_prefix.seg_map_path=annotations/training',
    ]
    trained = tmp_path / 'two processes'
    argv = ('dist_train.sh', config, '2', '--work-dir', str(trained), *common)
    output = launch(*argv, 'train_cfg.max_iters=1')
    assert output.count('mIoU: ') == 1
    output = launch(*argv, 'train_cfg.max_iters=2', '--resume')
    assert 'iter: 1' in output
    checkpoint = str(trained / 'iter_2.pth')
    assert torch.load(checkpoint, weights_only=False)['meta']['iter'] == 2
    common = ['--work-dir', str(tmp_path / 'tested'), *common]
    metrics = metrics_of(run(TEST, config, checkpoint, '--out', 'one', *common))
    output = launch('dist_test.sh', config, checkpoint, '2', '--out', 'two', *common)
    assert metrics_of(output) == metrics
    assert metrics['mIoU'] > 0
    one, two = (
        {path.name: path.read_bytes() for path in Path(o).iterdir()} for o in ('one', 'two')
    )
    assert len(one) == TEST_IMAGES
    assert one == two


@pytest.mark.skipif(get_device() != 'cpu', reason='the process group is NCCL')
def test_sync_bn_trains_in_a_process_group_on_cpu(
    isolated: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SyncBatchNorm of the model and of cfg.sync_bn becomes BatchNorm, and the log says so."""
    for name, value in dict(RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1').items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('MASTER_PORT', free_port())
    argv = ('--launcher', 'pytorch', '--cfg-options', 'sync_bn=torch')
    output = run(TRAIN, 'cls.py', *argv, '--work-dir', 'work_dirs/sync_bn')
    assert '1 processes work together over gloo' in output
    assert 'SyncBatchNorm layers, if there are any, become BatchNorm layers' in output
    assert 'Epoch(train) [1][4/4]' in output
    assert not torch.distributed.is_initialized()

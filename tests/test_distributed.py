"""Training, validating, testing and resuming in two processes over gloo, by the launchers."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Run, load_tool, metrics_of, predictions
from distributed_jobs import TIMEOUT, free_port, launch
from mmengine.config import Config
from mmengine.device import get_device

from mmlavit.errors import UserError

TRAIN, TEST = load_tool('train'), load_tool('test')
# a number of images that two processes cannot share evenly
TEST_IMAGES = 3

CONFIGS = {
    'classifier': 'lavit-nano_shapes-cls.py',
    'detector': 'mask-rcnn_lavit-nano_shapes.py',
    'segmentor': 'upernet_lavit-nano_shapes.py',
}
LAYOUTS = {'classifier': 'classification', 'detector': 'coco', 'segmentor': 'ade20k'}
METRICS = {
    'classifier': ['accuracy/top1'],
    'detector': ['coco/bbox_mAP', 'coco/segm_mAP'],
    'segmentor': ['mIoU', 'mAcc', 'aAcc'],
}
# short runs, tested on training scenes: there are three of them
OPTIONS = {
    'classifier': ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1'],
    'detector': [
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'test_dataloader.dataset.ann_file=annotations/instances_train2017.json',
        'test_dataloader.dataset.data_prefix.img=train2017/',
    ],
    'segmentor': [
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        'test_dataloader.dataset.data_prefix.img_path=images/training',
        'test_dataloader.dataset.data_prefix.seg_map_path=annotations/training',
    ],
}
CHECKPOINTS = {'classifier': 'epoch_1.pth', 'detector': 'epoch_1.pth', 'segmentor': 'iter_2.pth'}


def options(name: str, shapes: Path) -> list[str]:
    result = ['model.backbone.init_cfg=None', 'default_hooks.logger.interval=1', TIMEOUT]
    for split in ('train', 'val', 'test'):
        result += [
            f'{split}_dataloader.{key}'
            for key in (
                f'dataset.data_root={shapes / LAYOUTS[name]}',
                'batch_size=2',
                'num_workers=0',
                'persistent_workers=False',
            )
        ]
    if name == 'detector':
        for split, source in (('val', 'val'), ('test', 'train')):
            path = shapes / f'coco/annotations/instances_{source}2017.json'
            result.append(f'{split}_evaluator.ann_file={path}')
    return [*result, f'test_dataloader.dataset.indices={TEST_IMAGES}', *OPTIONS[name]]


def write_truth(path: Path, found: list[dict]) -> Path:
    """Annotations near what a detector found: an untrained one finds nothing that is there."""
    annotations = []
    for image in found:
        instances = image['pred_instances']
        parts = (instances[key][:8] for key in ('bboxes', 'labels', 'masks'))
        for box, label, mask in zip(*parts, strict=True):
            left, top, right, bottom = box.tolist()
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image['img_id'],
                    category_id=int(label) + 1,
                    bbox=[left + 1, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    segmentation={**mask, 'counts': mask['counts'].decode()},
                    iscrowd=0,
                )
            )
    images = [
        dict(id=i['img_id'], width=160, height=160, file_name=Path(i['img_path']).name)
        for i in found
    ]
    names = ['circle', 'square', 'triangle']
    categories = [dict(id=number, name=name) for number, name in enumerate(names, 1)]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_two_processes_train_validate_resume_and_test(
    name: str, shapes: Path, tmp_path: Path, isolated: None, run: Run
) -> None:
    """Their metrics and predictions are those of one process, each image counted once."""
    config = str(ROOT / 'configs/shapes' / CONFIGS[name])
    common = ['--cfg-options', *options(name, shapes)]
    trained = str(tmp_path / 'two processes')
    argv = [config, '2', '--work-dir', trained, *common]

    output = launch('dist_train.sh', *argv)
    assert '2 processes work together over gloo' in output
    checkpoint = Path(trained, CHECKPOINTS[name])
    for metric in METRICS[name]:
        assert output.count(f'{metric}: ') == 1
    # 6 classification images, 4 scenes: batches of 2 in 2 processes
    steps = {'classifier': 2, 'detector': 1, 'segmentor': 2}[name]
    assert torch.load(checkpoint, weights_only=False)['meta']['iter'] == steps

    last = checkpoint
    # epochs are resumed in test_faults_together.py
    if name == 'segmentor':
        output = launch('dist_train.sh', *argv, 'train_cfg.max_iters=4', '--resume')
        assert 'iter: 2' in output
        last = checkpoint.with_name('iter_4.pth')
        assert torch.load(last, weights_only=False)['meta']['iter'] == 4

    def test(number: int, *further: str) -> tuple[str, dict[str, float]]:
        out = f'{number} {name}' + ('' if name == 'segmentor' else '.pkl')
        argv = [config, str(last), *([str(number)] if number > 1 else [])]
        argv += ['--out', out, '--work-dir', str(tmp_path / out), *common, *further]
        return out, metrics_of(run(TEST, *argv) if number == 1 else launch('dist_test.sh', *argv))

    one, metrics = test(1)
    further = []
    if name == 'detector':
        truth = write_truth(tmp_path / 'truth.json', predictions(one))
        further = [
            f'{key}.ann_file={truth}' for key in ('test_dataloader.dataset', 'test_evaluator')
        ]
        one, metrics = test(1, *further)
    two, metrics_of_two = test(2, *further)
    for metric in METRICS[name]:
        assert metrics_of_two[metric] == metrics[metric] > 0, metric
    if name == 'segmentor':
        masks = {path.name: path.read_bytes() for path in Path(one).iterdir()}
        assert len(masks) == TEST_IMAGES
        assert masks == {path.name: path.read_bytes() for path in Path(two).iterdir()}
    else:
        images = [prediction['img_path'] for prediction in predictions(one)]
        assert len(set(images)) == TEST_IMAGES
        assert images == [prediction['img_path'] for prediction in predictions(two)]


def test_every_process_finds_the_folder_of_png_files(tmp_path: Path) -> None:
    """mmseg makes it in the first process only, and another may be the first to write."""
    cfg = Config(dict(test_evaluator=dict(type='IoUMetric')))
    TEST.save_pngs(cfg, str(tmp_path / 'a/b'))
    assert (tmp_path / 'a/b').is_dir()
    Path(tmp_path, 'file').touch()
    with pytest.raises(UserError, match=r'file/b.* cannot be made: Not a directory'):
        TEST.save_pngs(cfg, str(tmp_path / 'file/b'))


@pytest.mark.skipif(get_device() != 'cpu', reason='the process group is NCCL')
def test_sync_bn_trains_in_a_process_group_on_cpu(
    isolated: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SyncBatchNorm of the model and of cfg.sync_bn becomes BatchNorm, and the log says so."""
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '1')
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', free_port())
    argv = ('--launcher', 'pytorch', '--cfg-options', 'sync_bn=torch')
    output = run(TRAIN, 'cls.py', *argv, '--work-dir', 'work_dirs/sync_bn')
    assert '1 processes work together over gloo' in output
    assert 'SyncBatchNorm layers, if there are any, become BatchNorm layers' in output
    assert 'Epoch(train) [1][4/4]' in output
    assert not torch.distributed.is_initialized()
    # a thread that lives on may abort the process when Python shuts down
    threads = [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]
    assert not [name for name in threads if 'gloo' in name]

"""tools/train.py, with the three toolboxes on real files."""

from pathlib import Path

import pytest
import torch
from conftest import TEST_IMAGES, TEST_SCENES, Run, load_tool, metrics_of, predictions

TRAIN, TEST = load_tool('train'), load_tool('test')

pytestmark = pytest.mark.usefixtures('isolated')


@pytest.mark.parametrize(
    ('config', 'result', 'out', 'num_images', 'metric'),
    [
        ('cls.py', 'epoch_1.pth', 'out/cls.pkl', TEST_IMAGES, 'accuracy/top1'),
        ('det.py', 'epoch_1.pth', 'out/det.pickle', TEST_SCENES, 'coco/bbox_mAP'),
        ('seg.py', 'iter_2.pth', 'out/seg', TEST_SCENES, 'mIoU'),
        # OpenMMLab's pure Python config
        ('lazy_cls.py', 'epoch_1.pth', 'out/lazy_cls.pkl', TEST_IMAGES, 'accuracy/top1'),
    ],
)
def test_one_pair_of_tools_serves_three_toolboxes(
    config: str, result: str, out: str, num_images: int, metric: str, run: Run
) -> None:
    """Train, then test with predictions and painted images; the default work dir is upstream's."""
    run(TRAIN, config)
    work_dir = Path('work_dirs') / Path(config).stem
    show_dir = Path('shown', config)
    output = run(TEST, config, str(work_dir / result), '--out', out, '--show-dir', str(show_dir))
    assert metric in metrics_of(output)
    assert f'{metric}: ' in output
    assert len(list(show_dir.rglob('*.png'))) == num_images
    if metric == 'mIoU':
        names = {path.name for path in Path('shapes/ade20k/images/validation').iterdir()}
        assert {path.name for path in Path(out).iterdir()} == names
    else:
        assert len(predictions(out)) == num_images


@pytest.mark.usefixtures('checkpoint')
def test_training_options_and_resume(run: Run) -> None:
    """--resume goes on with the next epoch, and begins with load_from where there is no run yet."""
    argv = ('cls.py', '--work-dir', 'work dirs/options', '--resume')
    argv += ('--cfg-options', 'load_from=cls.pth')
    output = run(TRAIN, *argv, '--auto-scale-lr')
    assert 'Load checkpoint from cls.pth' in output
    # 3 images a batch against a base of 12: a quarter of 0.02
    assert 'Epoch(train) [1][4/4]  lr: 5.0000e-03' in output
    assert 'accuracy/top1: ' in output

    output = run(TRAIN, *argv, 'train_cfg.max_epochs=2', '--no-validate')
    assert 'resumed epoch: 1, iter: 4' in output
    assert 'Epoch(train) [1]' not in output
    assert 'Epoch(train) [2][4/4]' in output
    assert 'Epoch(val)' not in output
    meta = torch.load('work dirs/options/epoch_2.pth', weights_only=False)['meta']
    assert (meta['epoch'], meta['iter']) == (2, 8)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (('none.py',), "config file 'none.py' does not exist"),
        (('broken.py',), "config file 'broken.py' cannot be read: SyntaxError: invalid syntax"),
        (('mine.py',), 'PYTHONPATH=. lets modules of the working directory be found'),
        (
            ('cls.py', '--cfg-options', 'model.backbone.dept=18'),
            "TypeError: ResNet.__init__() got an unexpected keyword argument 'dept'",
        ),
        (
            ('cls.py', '--cfg-options', 'optim_wrapper.optimizer.type=AdamV'),
            "optim_wrapper.optimizer: type 'AdamV' is unknown",
        ),
        (
            ('cls.py', '--cfg-options', 'model.backbone.type=ResNett'),
            'KeyError: ResNett is not in the mmpretrain::model registry',
        ),
        (('cls.py', '--launcher', 'ssh'), "invalid choice: 'ssh'"),
        (('cls.py', '--launcher', 'pytorch'), 'RANK is not set'),
        (('cls.py', '--resume', 'none.pth'), "checkpoint 'none.pth' does not exist"),
        (('cls.py', '--resume', 'broken.py'), "checkpoint 'broken.py' is damaged"),
        (('seg.py', '--auto-scale-lr'), 'seg.py has no auto_scale_lr.base_batch_size'),
        (('cls.py', '--cfg-options', 'val_cfg=None'), 'cls.py: val_cfg must be set'),
        (('cls.py', '--cfg-options', 'val_evaluator=(1,2)'), 'expected a dictionary'),
        (('cls.py', '--cfg-options', 'model'), "expected KEY=VALUE, found 'model'"),
        (('cls.py', '--cfg-options', 'default_scope=mmyolo'), "default_scope is 'mmyolo'"),
        (
            ('cls.py', '--cfg-options', 'train_dataloader.dataset.data_root=nowhere'),
            "data_root 'nowhere' does not exist",
        ),
        (
            ('cls.py', '--cfg-options', 'train_dataloader.dataset.data_prefix=trian'),
            "data_prefix 'shapes/classification/trian' does not exist",
        ),
        (('cls.py', '--work-dir', 'cls.py/run'), "work dir 'cls.py/run' cannot be written to"),
    ],
)
def test_train_explains_user_errors(
    argv: tuple[str, ...], message: str, fails: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input ends in one line that names it."""
    monkeypatch.delenv('RANK', raising=False)
    Path('broken.py').write_text('model = = 1\n')
    Path('mine.py').write_text("_base_ = 'cls.py'\ncustom_imports = dict(imports=['my_hooks'])\n")
    found = fails(TRAIN, *argv)
    assert message in found
    assert found.count('\n') == 1

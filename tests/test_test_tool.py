"""tools/test.py, with the three toolboxes on real files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Run, load_tool, metrics_of, predictions
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmseg.evaluation import IoUMetric
from PIL import Image

TEST = load_tool('test')
MASK_RCNN = str(ROOT / 'configs/shapes/mask-rcnn_lavit-nano_shapes.py')
VAL_FILE = 'shapes/coco/annotations/instances_val2017.json'
SHAPES = (
    *('--cfg-options', 'test_dataloader.dataset.data_root=shapes/coco'),
    f'test_evaluator.ann_file={VAL_FILE}',
)

pytestmark = pytest.mark.usefixtures('isolated')


def test_tta_averages_the_flipped_images(checkpoint: str, run: Run) -> None:
    """mmpretrain's default augmentation is the mean over an image and its mirror image."""
    scores = {}
    for name, argv in (
        ('plain', ('cls.py', checkpoint)),
        ('flipped', ('cls_flipped.py', checkpoint)),
        ('tta', ('cls.py', checkpoint, '--tta')),
    ):
        run(TEST, *argv, '--out', f'out/{name}.pkl', '--work-dir', f'work_dirs/{name}')
        scores[name] = torch.stack([p['pred_score'] for p in predictions(f'out/{name}.pkl')])
    assert not torch.allclose(scores['plain'], scores['flipped'], atol=1e-6)
    mean = (scores['plain'] + scores['flipped']) / 2
    torch.testing.assert_close(scores['tta'], mean)


def run_with_and_without_tta(run: Run, name: str, suffix: str, *options: str) -> list[str]:
    """Test random weights of a config; return the metrics' lines."""
    config = str(ROOT / 'configs/shapes' / name)
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save({'state_dict': model.state_dict()}, f'{name}.pth')
    loading = ('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')
    return [
        run(TEST, config, f'{name}.pth', *tta, '--out', f'{out}{suffix}', '--cfg-options', *loading,
            *options)
        for out, tta in (('plain', ()), ('tta', ('--tta',)))
    ]  # fmt: skip


def test_tta_of_a_segmentor_uses_scales_and_flips(run: Run) -> None:
    """--tta takes the pipeline of the config, and its masks have the size of the images."""
    data = 'test_dataloader.dataset.data_root=shapes/ade20k'
    for output in run_with_and_without_tta(run, 'semantic-fpn_lavit-nano_shapes.py', '', data):
        assert 0 <= metrics_of(output)['mIoU'] <= 100
    plain, tta = (
        [np.asarray(Image.open(path)) for path in sorted(Path(name).glob('*.png'))]
        for name in ('plain', 'tta')
    )
    assert [mask.shape for mask in tta] == [(64, 64)] * 2
    assert not np.array_equal(plain, tta)


def test_tta_of_a_detector_flips(run: Run) -> None:
    """RetinaNet has no augmentation of its own; boxes of the mirror image lie in the image."""
    run_with_and_without_tta(
        *(run, 'retinanet_lavit-nano_shapes.py', '.pkl', 'model.test_cfg.score_thr=0.0'),
        *('test_dataloader.dataset.data_root=shapes/coco', f'test_evaluator.ann_file={VAL_FILE}'),
    )
    plain, tta = (
        [image['pred_instances']['bboxes'] for image in predictions(f'{name}.pkl')]
        for name in ('plain', 'tta')
    )
    for found in (*plain, *tta):
        assert len(found) and found.min() >= 0 and found.max() <= 64
    assert not all(map(torch.equal, plain, tta))


def test_metrics_can_be_the_output(checkpoint: str, run: Run) -> None:
    """--out-item metrics writes those of all metrics of the evaluator, and nothing else."""
    Path('cls_two.py').write_text(
        "_base_ = 'cls.py'\n"
        "test_evaluator = [dict(type='Accuracy', topk=1), dict(type='SingleLabelMetric')]\n"
    )
    argv = ('--out', 'out/metrics.json', '--out-item', 'metrics')
    logged = metrics_of(run(TEST, 'cls_two.py', checkpoint, *argv))
    assert logged.keys() >= {'accuracy/top1', 'single-label/f1-score'}
    written = json.loads(Path('out/metrics.json').read_text())
    assert written == pytest.approx(logged, abs=1e-4)


@pytest.mark.parametrize(
    'evaluator',
    [dict(type=IoUMetric), [dict(type='IoUMetric')], dict(metrics=[dict(type='IoUMetric')])],
)
def test_masks_are_written_however_metrics_are_listed(evaluator: Any) -> None:
    """mmengine takes one metric, a list, and an evaluator with a list; classes and names."""
    cfg = Config(dict(test_evaluator=evaluator))
    TEST.save_pngs(cfg, 'masks')
    assert "output_dir='masks'" in cfg.pretty_text and Path('masks').is_dir()


def test_wrong_checkpoint_is_refused(checkpoint: str, fails: Run) -> None:
    """A checkpoint of another depth stops before any image is read, listing keys and counts."""
    message = fails(TEST, 'cls.py', checkpoint, '--cfg-options', 'model.backbone.depth=34')
    assert f'{checkpoint} does not belong to this ImageClassifier' in message
    assert 'missing from the file: 80: backbone.layer1.2.conv1.weight, ' in message
    assert ' and 70 more' in message


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (('cls.py', 'none.pth'), "checkpoint 'none.pth' does not exist"),
        (('cls.py', 'cls.py'), "checkpoint 'cls.py' is damaged"),
        (('cls.py', 'cls.pth', '--out', 'x.json'), 'expected a file ending in .pkl, .pickle'),
        (('seg.py', 'cls.pth', '--out', 'x.pkl'), 'mmseg writes PNG files'),
        (('cls.py', 'cls.pth', '--out', 'cls.py/x.pkl'), "--out 'cls.py' cannot be written to"),
        (('seg.py', 'cls.pth', '--out', 'cls.py/x'), "--out 'cls.py/x' cannot be written to"),
        (('cls.py', 'cls.pth', '--out-item', 'pred'), '--out-item needs --out'),
        (('seg.py', 'cls.pth', '--tta'), 'seg.py has no tta_model, tta_pipeline'),
        ((MASK_RCNN, 'cls.pth', '--tta', *SHAPES), 'merges boxes only, and this model has masks'),
        (('cls.py', 'cls.pth', '--tta', '--show-dir', 'x'), 'cannot paint augmented images'),
        (('det.py', 'cls.pth', '--show', '--interval', '2'), 'paints every test image'),
        (
            ('cls.py', 'cls.pth', '--cfg-options', 'test_dataloader=[1,2]'),
            'test_dataloader is [1, 2], expected a dictionary',
        ),
    ],
)
def test_test_explains_user_errors(
    argv: tuple[str, ...], message: str, checkpoint: str, fails: Run
) -> None:
    """Bad input ends in one line that names it, before a model is built."""
    found = fails(TEST, *argv)
    assert message in found
    assert found.count('\n') == 1

"""tools/test.py, with the three toolboxes on real files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Run, load_tool, metrics_of, predictions
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmlavit.errors import UserError

TEST = load_tool('test')
TRAIN_FILE = 'shapes/coco/annotations/instances_train2017.json'

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


def test_default_tta_of_mmdet_flips_boxes_back() -> None:
    """The default pipeline keeps the keys that DetTTAModel needs to undo a flip."""
    cfg = Config.fromfile('det.py')
    TEST.augment(cfg)
    assert (cfg.model.type, cfg.model.module.type) == ('DetTTAModel', 'RetinaNet')
    flips, (pack,) = cfg.test_dataloader.dataset.pipeline[-1].transforms
    assert [flip.prob for flip in flips] == [1.0, 0.0]
    assert pack == dict(type='PackDetInputs')
    cfg = Config.fromfile('det.py')
    cfg.model.roi_head = dict(mask_head=dict(type='FCNMaskHead'))
    with pytest.raises(UserError, match='boxes only'):
        TEST.augment(cfg)


def random_checkpoint(config: str) -> str:
    """Save random weights of a config of the repository."""
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    path = f'{Path(config).stem}.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


def shapes_options(layout: str) -> list[str]:
    return [
        f'test_dataloader.dataset.data_root=shapes/{layout}',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]


def test_tta_of_a_segmentor_uses_scales_and_flips(run: Run) -> None:
    """--tta takes the pipeline of the config, and its masks have the size of the images."""
    config = str(ROOT / 'configs/shapes/semantic-fpn_lavit-nano_shapes.py')
    checkpoint, options = random_checkpoint(config), shapes_options('ade20k')
    masks = {}
    for name, argv in (('plain', ()), ('tta', ('--tta',))):
        output = run(TEST, config, checkpoint, *argv, '--out', name, '--cfg-options', *options)
        assert 0 <= metrics_of(output)['mIoU'] <= 100
        masks[name] = [np.asarray(Image.open(path)) for path in sorted(Path(name).glob('*.png'))]
    assert [mask.shape for mask in masks['tta']] == [(64, 64)] * 2
    assert not np.array_equal(masks['plain'], masks['tta'])


def test_tta_of_a_detector_flips(run: Run) -> None:
    """RetinaNet has no augmentation of its own; boxes of the mirror image lie in the image."""
    config = str(ROOT / 'configs/shapes/retinanet_lavit-nano_shapes.py')
    checkpoint, options = random_checkpoint(config), shapes_options('coco')
    options.append('model.test_cfg.score_thr=0.0')
    file = 'shapes/coco/annotations/instances_val2017.json'
    options.append(f'test_evaluator.ann_file={file}')
    boxes = {}
    for name, argv in (('plain', ()), ('tta', ('--tta',))):
        out = f'{name}.pkl'
        run(TEST, config, checkpoint, *argv, '--out', out, '--cfg-options', *options)
        boxes[name] = [p['pred_instances']['bboxes'] for p in predictions(out)]
        for found in boxes[name]:
            assert len(found) and found.min() >= 0 and found.max() <= 64
    assert any(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(boxes['plain'], boxes['tta'], strict=True)
    )


def test_metrics_can_be_the_output(checkpoint: str, run: Run) -> None:
    """--out-item metrics writes the metrics, and nothing else, to --out."""
    argv = ('--out', 'out/metrics.json', '--out-item', 'metrics')
    logged = metrics_of(run(TEST, 'cls.py', checkpoint, *argv))['accuracy/top1']
    written = json.loads(Path('out/metrics.json').read_text())
    assert written == {'accuracy/top1': pytest.approx(logged, abs=1e-4)}


def test_several_metrics_are_evaluated(checkpoint: str, run: Run) -> None:
    """An evaluator may be a list of metrics."""
    Path('cls_two.py').write_text(
        "_base_ = 'cls.py'\n"
        "test_evaluator = [dict(type='Accuracy', topk=1), dict(type='SingleLabelMetric')]\n"
    )
    metrics = metrics_of(run(TEST, 'cls_two.py', checkpoint))
    assert {'accuracy/top1', 'single-label/f1-score'} <= metrics.keys()


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
        (('det.py', 'cls.pth', '--out', 'x'), 'expected a file ending in .pkl, .pickle'),
        (('seg.py', 'cls.pth', '--out', 'x.pkl'), 'mmseg writes PNG files'),
        (('cls.py', 'cls.pth', '--out-item', 'pred'), '--out-item needs --out'),
        (('seg.py', 'cls.pth', '--tta'), 'seg.py has no tta_model, tta_pipeline'),
        (('cls.py', 'cls.pth', '--tta', '--show-dir', 'x'), 'cannot paint augmented images'),
        (('det.py', 'cls.pth', '--show', '--interval', '2'), 'paints every test image'),
        (
            ('det.py', 'cls.pth', '--cfg-options', f'test_evaluator.ann_file={TRAIN_FILE}'),
            f'test_evaluator: ann_file is {TRAIN_FILE!r}, expected that of test_dataloader, '
            "'shapes/coco/annotations/instances_val2017.json'",
        ),
        (
            ('det.py', 'cls.pth', '--cfg-options', 'test_evaluator.ann_file=none.json'),
            "test_evaluator: ann_file 'none.json' does not exist, seen from ",
        ),
        (
            (
                *('det.py', 'cls.pth', '--cfg-options', 'test_dataloader.dataset.data_root='),
                'test_dataloader.dataset.ann_file=none.json',
            ),
            "test_dataloader: ann_file 'none.json' does not exist, seen from ",
        ),
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

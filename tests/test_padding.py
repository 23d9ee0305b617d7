"""Padding that a data preprocessor adds does not change the features of an image."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmlavit.models import PAD_VALUE, LaViT
from mmlavit.models.layers import real_pixels

DENSE = sorted(
    path for task in ('detection', 'segmentation', 'shapes')
    for path in (ROOT / 'configs' / task).glob('*.py') if 'cls' not in path.stem
)  # fmt: skip
SIZES = [(96, 64), (50, 90), (33, 40), (96, 90)]


def preprocessor(name, **options):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build({**cfg.model.data_preprocessor, **options})


def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, *size), generator=generator).byte() for size in SIZES]


def lavit(window):
    torch.manual_seed(0)
    model = LaViT('nano', window_size=window).double()
    for name, param in model.named_parameters():
        if name.endswith(('theta', 'psi', 'bias')):
            torch.nn.init.normal_(param, std=0.1)
    return model


def prepare(preprocess, batch, training=False):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData, PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for image in batch:
        size = tuple(image.shape[1:])
        if 'Det' in type(preprocess).__name__:
            sample = DetDataSample(metainfo=dict(img_shape=size), gt_instances=InstanceData())
        else:
            sample = SegDataSample(metainfo=dict(img_shape=size))
            sample.gt_sem_seg = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
        samples.append(sample)
    return preprocess(dict(inputs=batch, data_samples=samples), training)['inputs'].double()


PREPROCESSORS = [
    ('detection/mask-rcnn_lavit-small_fpn_1x_coco.py', {}),
    ('segmentation/lavit-small_upernet_8xb2-160k_ade20k-512x512.py', {'size': (128, 128)}),
]


@pytest.mark.parametrize(('config', 'options'), PREPROCESSORS, ids=['mmdet', 'mmseg'])
@pytest.mark.parametrize('window', [7, 4, (3, 7, 5, 2)])
@pytest.mark.parametrize('training', [False, True])
def test_an_image_in_a_padded_batch_has_the_features_it_has_alone(
    config, options, window, training
):
    model = lavit(window).train(training)
    preprocess = preprocessor(config, **options)
    alone = [prepare(preprocessor(config, size=None) if options else preprocess, [image])
             for image in images()]  # fmt: skip
    batch = prepare(preprocess, images(), training=True)
    assert (batch < PAD_VALUE / 2).any()
    maps = model(batch)
    for i, image in enumerate(alone):
        for got, expected in zip(maps, model(image), strict=True):
            h, w = expected.shape[2:]
            torch.testing.assert_close(got[i, :, :h, :w], expected[0], rtol=1e-9, atol=1e-9)


def test_padding_is_finite_and_gives_every_parameter_a_gradient():
    """Also where padding fills whole windows."""
    model = LaViT('nano')
    batch = torch.full((2, 3, 300, 40), PAD_VALUE)
    batch[0], batch[1, :, :20, :20] = torch.randn(3, 300, 40), torch.randn(3, 20, 20)
    for autocast in (False, True):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            maps = model(batch)
        assert all(m.isfinite().all() for m in maps)
        sum(m.float().sin().sum() for m in maps).backward()
        for name, param in model.named_parameters():
            assert param.grad is not None and param.grad.isfinite().all(), name


@pytest.mark.parametrize('path', DENSE, ids=lambda path: path.stem)
def test_every_dense_config_marks_its_padding(path):
    options = Config.fromfile(path).model.data_preprocessor
    assert options.get('pad_value', options.get('pad_val')) == PAD_VALUE


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_padding_is_found_whatever_is_done_to_a_batch(dtype):
    """Padded again with zeros, resized, or in half precision."""
    batch = torch.full((2, 3, 8, 8), PAD_VALUE)
    batch[0], batch[1, :, :4, :6] = 1, 1
    expected = torch.ones(2, 8, 8, dtype=torch.bool)
    expected[1, 4:] = expected[1, :, 6:] = False
    assert torch.equal(real_pixels(batch.to(dtype)), expected)
    again = real_pixels(F.pad(batch.to(dtype), (0, 4, 0, 4)))
    assert torch.equal(again[:, :8, :8], expected)
    blended = F.interpolate(batch, scale_factor=2.5, mode='bilinear').to(dtype)
    assert (blended[:, 0][real_pixels(blended)] > 0.99).all()


def test_pixels_that_are_no_numbers_are_not_taken_for_padding():
    """A broken image must show in the loss."""
    batch = torch.zeros(1, 3, 8, 8)
    assert real_pixels(batch) is None
    batch[0, 0, 3, 3] = float('nan')
    assert real_pixels(batch) is None

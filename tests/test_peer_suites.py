"""What the test suites of Swin in mmpretrain, mmdet and mmseg, and of timm, ask of any model.

timm's ``global_pool=''``, ``torch.jit.script`` and ``torch.fx``, and mmpretrain's ``norm_eval`` are
not supported: a head always pools, a graph depends on the image's size, and there are no batch
norms.
"""

import copy
import math

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn

import mmlavit
from mmlavit.models import LaViT
from mmlavit.models.backbones.arch import ARCHS


@pytest.mark.parametrize('size', [(1, 1), (1, 700), (112, 137), (224, 224), (511, 512)], ids=str)
@pytest.mark.parametrize('training', [True, False])
def test_maps_of_any_size_after_init_weights(size, training):
    model = LaViT('nano', drop_path_rate=0.1)
    model.init_weights()
    maps = model.train(training)(torch.randn(1, 3, *size))
    assert isinstance(maps, tuple)
    for i, out in enumerate(maps):
        stride = 4 * 2**i
        assert out.shape == (1, 32 * 2**i, *(math.ceil(side / stride) for side in size))
        assert out.is_contiguous() and out.isfinite().all()


@pytest.mark.parametrize('arch', ARCHS)
def test_every_variant_has_the_stages_of_its_table(arch):
    with torch.device('meta'):
        model = LaViT(arch)
        maps = model(torch.empty(1, 3, 224, 224))
    table = ARCHS[arch]
    assert [m.shape[1:] for m in maps] == [
        (channels, 56 // 2**i, 56 // 2**i) for i, channels in enumerate(table.channels)
    ]
    assert tuple(len(stage.blocks) for stage in model.stages) == table.depths


def test_a_window_larger_than_the_map_and_an_image_of_another_size():
    """mmpretrain's Swin asks for ``pad_small_map``; here one model takes all sizes."""
    model = LaViT('nano', window_size=12, out_indices=(3,)).eval()
    for size in (384, 224, 32):
        assert model(torch.randn(1, 3, size, size))[0].shape[2:] == (size // 32, size // 32)


def test_start_values_follow_init_cfg():
    """A user's own initialization counts, and start values without one stay as they are."""
    kaiming = [dict(type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='linear')]
    for init_cfg, changes in ((kaiming, True), (None, False)):
        model = LaViT('nano', init_cfg=init_cfg)
        assert isinstance(model, BaseModule)
        before = copy.deepcopy(model.state_dict())
        model.init_weights()
        weight = 'stages.0.embed.proj.weight'
        assert torch.equal(model.state_dict()[weight], before[weight]) != changes
        weight = 'stages.0.blocks.0.attn.qkv.weight'
        assert torch.equal(model.state_dict()[weight], before[weight])


def test_a_checkpoint_of_mmengine_loads_strictly(tmp_path):
    model, other = LaViT('nano'), LaViT('nano')
    save_checkpoint({'state_dict': model.state_dict()}, str(tmp_path / 'x.pth'))
    load_checkpoint(other, str(tmp_path / 'x.pth'), strict=True)
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.fixture(scope='module')
def classifier():
    return mmlavit.create_model('lavit_nano', num_classes=42).eval()


def test_a_classifier_trains_as_a_whole(classifier):
    model = copy.deepcopy(classifier).train()
    logits = model(torch.randn(2, 3, 128, 128))
    assert logits.shape == (2, 42) and logits.isfinite().all()
    logits.mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_default_config_names_what_there_is(classifier):
    """timm's scripts read image size and normalization there, and feed what comes of it."""
    cfg = classifier.default_cfg
    image = torch.randn(1, *cfg['input_size'])
    assert classifier.forward_features(image).shape == (1, classifier.num_features, 7, 7)
    assert len(cfg['mean']) == len(cfg['std']) == cfg['input_size'][0]


def test_a_classifier_may_be_replaced_and_removed(classifier):
    model, image = copy.deepcopy(classifier), torch.randn(2, 3, 64, 64)
    features = model.forward_features(image)
    assert torch.equal(model.forward_head(features), model(image))
    for classes, width in ((7, 7), (0, model.num_features)):
        model.reset_classifier(classes)
        assert model.num_classes == classes
        assert model(image).shape == (2, width)
        assert torch.equal(model.forward_features(image), features)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(image), model.forward_head(features, pre_logits=True))


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels_than_three(channels):
    model = mmlavit.create_model('lavit_nano', num_classes=5, in_chans=channels)
    assert model(torch.randn(2, channels, 64, 64)).shape == (2, 5)


def test_a_traced_model_gives_what_the_model_gives(classifier):
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        traced = torch.jit.trace(classifier, image)
        torch.testing.assert_close(traced(image), classifier(image))

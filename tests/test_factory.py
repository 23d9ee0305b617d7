"""Models by name, in plain PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_python
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from safetensors.torch import save_file

import mmlavit
from mmlavit.errors import UserError
from mmlavit.models import LaViT

FIRST = 'stages.0.embed.proj.weight'

Saved = tuple[str, torch.nn.Module]


@pytest.fixture(scope='module')
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """What mmpretrain saves of a classifier of three classes, and that classifier."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(ROOT / 'configs/shapes/lavit-nano_shapes-cls.py')
    model = MODELS.build(cfg.model).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    weight = model.backbone.get_parameter(FIRST).data
    weight[:] = weight.mean(1, keepdim=True)  # takes each band of an image alike
    path = tmp_path_factory.mktemp('saved') / 'epoch_1.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return str(path), model


def test_names_are_those_of_the_arch_table() -> None:
    """Every variant can be built by name, and a pattern filters them."""
    names = ['lavit_nano', 'lavit_tiny', 'lavit_small', 'lavit_base']
    assert mmlavit.list_models() == names
    assert mmlavit.list_models(['*ny', '*se']) == ['lavit_tiny', 'lavit_base']
    assert mmlavit.list_models(exclude_filters='*ny') == [n for n in names if n != 'lavit_tiny']


@pytest.mark.parametrize('out_indices', [None, [1, 3], (-3, -1)])
def test_feature_info_describes_what_comes_out(out_indices: list[int] | None) -> None:
    model = mmlavit.create_model('lavit_nano', features_only=True, out_indices=out_indices)
    maps = model(torch.randn(2, 3, 64, 96))
    assert len(maps) == (4 if out_indices is None else len(out_indices))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    for m, reduction in zip(maps, model.feature_info.reduction(), strict=True):
        assert m.shape[2:] == (64 // reduction, 96 // reduction)


@torch.no_grad()
def test_classifier_is_features_then_head() -> None:
    """The head pools over the map, may be replaced and removed, and the whole may be traced."""
    model = mmlavit.create_model('lavit_nano', num_classes=10, in_chans=4).eval()
    x = torch.randn(2, 4, 64, 64)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, model.num_features, 2, 2)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model.get_classifier()(pooled))
    for classes, width in ((10, 10), (7, 7), (0, model.num_features)):
        if classes < 10:
            model.reset_classifier(classes, 'avg')
        assert model.num_classes == classes
        assert model(x).shape == (2, width)
        torch.testing.assert_close(model(x), model.forward_head(features))
    torch.testing.assert_close(model(x), pooled)
    with pytest.raises(ValueError, match="global_pool='': expected 'avg'; forward_features"):
        model.reset_classifier(0, '')


@torch.no_grad()
def test_checkpoint_of_mmpretrain_gives_its_predictions(saved: Saved) -> None:
    """Classifier and features equal those of the model that was saved."""
    path, expected = saved
    x = torch.randn(2, 3, 96, 96)
    maps = expected.backbone(x)

    def outputs(**options: Any) -> torch.Tensor:
        return mmlavit.create_model('lavit_nano', checkpoint_path=path, **options).eval()(x)

    torch.testing.assert_close(outputs(num_classes=3), expected(x, mode='tensor'))
    torch.testing.assert_close(outputs(features_only=True, out_indices=(3,))[0], maps[0])
    torch.testing.assert_close(outputs(num_classes=0), expected.neck(maps)[0])


@pytest.mark.parametrize('channels', [1, 4, 7])
@torch.no_grad()
def test_other_channels_are_adapted_on_request(channels: int, saved: Saved) -> None:
    """The same band in all channels gives what the file's model gives for three."""
    path, expected = saved
    band = torch.randn(1, 1, 64, 64)
    options = dict(num_classes=3, in_chans=channels)
    model = mmlavit.create_model('lavit_nano', checkpoint_path=path, **options).eval()
    found = model(band.expand(-1, channels, -1, -1))
    torch.testing.assert_close(found, expected(band.expand(-1, 3, -1, -1), mode='tensor'))
    init_cfg = dict(type='Pretrained', checkpoint=path)
    with pytest.raises(UserError, match=r'\(32, 3, 4, 4\)(.|\n)*adapt_channels=True in init_cfg'):
        LaViT('nano', in_channels=channels, init_cfg=init_cfg).init_weights()
    backbone = LaViT('nano', in_channels=channels, init_cfg=dict(init_cfg, adapt_channels=True))
    backbone.init_weights()
    assert torch.equal(backbone.get_parameter(FIRST), model.backbone.get_parameter(FIRST))


@pytest.mark.parametrize('name', ['own.pth', 'own.safetensors'])
def test_own_state_dict_comes_back(name: str, tmp_path: Path) -> None:
    """What torch or safetensors wrote of a created model, create_model and init_cfg read."""
    first = mmlavit.create_model('lavit_nano', num_classes=7)
    path = str(tmp_path / name)
    (save_file if name.endswith('.safetensors') else torch.save)(first.state_dict(), path)
    second = mmlavit.create_model('lavit_nano', checkpoint_path=path, num_classes=7)
    for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    backbone = LaViT('nano', init_cfg=dict(type='Pretrained', checkpoint=path))
    backbone.init_weights()
    assert torch.equal(backbone.get_parameter(FIRST), first.backbone.get_parameter(FIRST))


def test_what_does_not_fit_is_refused(saved: Saved, tmp_path: Path) -> None:
    """No part of a model is left at random, and a missing file is named."""
    torch.save(LaViT('nano').state_dict(), tmp_path / 'backbone.pth')
    for name, path, options, message in (
        ('nano', saved[0], {}, r'of another shape: .*\(3, 256\) in the file(.|\n)*num_classes'),
        ('nano', str(tmp_path / 'backbone.pth'), {}, 'missing from the file: .*weight, bias'),
        ('tiny', saved[0], {'features_only': True}, 'does not fit LaViTFeatures'),
        ('nano', 'nowhere.pth', {}, "checkpoint 'nowhere.pth' does not exist$"),
    ):
        with pytest.raises(UserError, match=message):
            mmlavit.create_model(f'lavit_{name}', checkpoint_path=path, **options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model_name': 'lavit_smal'}, "expected one of lavit_nano, .*mean 'lavit_small'"),
        ({'pretrained': True}, 'no weights are published'),
        ({'features_only': True, 'num_classes': 3}, 'num_classes=3: features_only'),
        ({'out_indices': (1,)}, r'out_indices=\(1,\): needs features_only'),
        ({'features_only': True, 'out_indices': (4,)}, r'out_indices=\(4,\)'),
        ({'num_classes': -1}, 'num_classes=-1'),
        ({'init_cfg': {'type': 'Pretrained'}}, 'init_cfg={.*: name the file as checkpoint_path'),
        # Python's own message
        *(({name: 4}, name) for name in ('arch', 'in_channels', 'global_pool')),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        mmlavit.create_model(**{'model_name': 'lavit_nano', **options})


WITHOUT_TOOLBOXES = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'timm'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Refuse())
import mmlavit, torch
from mmlavit.models import DiagonalityLoss

x = torch.randn(2, 3, 64, 64)
backbone = mmlavit.create_model('lavit_nano', features_only=True)
maps, layers = backbone.forward_trace(x)
losses = [DiagonalityLoss()(e.logits, e.windows) for e in layers if e.kind == 'LA']
sum([m.sum() for m in maps] + losses).backward()
classifier = mmlavit.create_model('lavit_nano', num_classes=3, drop_path_rate=0.1)
classifier(x).square().sum().backward()
trained = [*backbone.parameters(), *classifier.parameters()]
print(len(losses) > 0, all(p.grad is not None for p in trained))
"""


def test_models_need_neither_mmcv_nor_a_toolbox(tmp_path: Path) -> None:
    """Feature extractor, classifier and loss, forward and backward, where none is installed."""
    run = run_python(WITHOUT_TOOLBOXES, tmp_path)
    assert run.stdout.split() == ['True', 'True'], run.stderr

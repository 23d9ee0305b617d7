"""Models by name, in plain PyTorch."""

from pathlib import Path

import pytest
import torch
from conftest import run_python
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from safetensors.torch import save_file

import mmlavit
from mmlavit.errors import UserError
from mmlavit.models import LaViT

NAMES = ['lavit_nano', 'lavit_tiny', 'lavit_small', 'lavit_base']
CONFIG = Path(__file__).parents[1] / 'configs/shapes/lavit-nano_shapes-cls.py'


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[str, torch.nn.Module]:
    """What mmpretrain saves of a classifier of three classes, and that classifier."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(CONFIG)
    model = MODELS.build(cfg.model).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path / 'epoch_1.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return str(path), model


def test_names_are_those_of_the_arch_table() -> None:
    """Every variant can be built by name, and a pattern filters them."""
    assert mmlavit.list_models() == NAMES
    assert mmlavit.list_models('*ny') == ['lavit_tiny']
    assert mmlavit.list_models(['*ny', '*se']) == ['lavit_tiny', 'lavit_base']
    assert mmlavit.list_models(exclude_filters=('*ny', '*se')) == ['lavit_nano', 'lavit_small']


@pytest.mark.parametrize('out_indices', [None, [1, 3], (2,), (-3, -1)])
def test_feature_info_describes_what_comes_out(out_indices: list[int] | None) -> None:
    """Channels and reduction are those of the maps of a forward pass."""
    model = mmlavit.create_model('lavit_nano', features_only=True, out_indices=out_indices).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 64, 96))
    assert len(maps) == (4 if out_indices is None else len(out_indices))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    for m, reduction in zip(maps, model.feature_info.reduction(), strict=True):
        assert m.shape[2:] == (64 // reduction, 96 // reduction)


def test_classifier_is_features_then_head() -> None:
    """The three forward functions fit together, and the head pools over the map."""
    model = mmlavit.create_model('lavit_nano', num_classes=10, in_chans=4).eval()
    with torch.no_grad():
        x = torch.randn(2, 4, 64, 64)
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert features.shape == (2, model.num_features, 2, 2)
        torch.testing.assert_close(pooled, features.mean((2, 3)))
        torch.testing.assert_close(model(x), model.get_classifier()(pooled))
        assert model(x).shape == (2, 10)
        model.reset_classifier(0, 'avg')
        torch.testing.assert_close(model(x), pooled)
    with pytest.raises(ValueError, match="global_pool='': expected 'avg'; forward_features"):
        model.reset_classifier(0, '')


def test_every_parameter_gets_a_gradient() -> None:
    """A classifier trains as a whole: nothing is built that the output does not depend on."""
    model = mmlavit.create_model('lavit_nano', num_classes=5)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_checkpoint_of_mmpretrain_gives_its_predictions(
    checkpoint: tuple[str, torch.nn.Module],
) -> None:
    """Classifier and features equal those of the model that was saved."""
    path, saved = checkpoint
    x = torch.randn(2, 3, 96, 96)
    model = mmlavit.create_model('lavit_nano', checkpoint_path=path, num_classes=3).eval()
    features = mmlavit.create_model(
        'lavit_nano', checkpoint_path=path, features_only=True, out_indices=(3,)
    ).eval()
    pooled = mmlavit.create_model('lavit_nano', checkpoint_path=path, num_classes=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), saved(x, mode='tensor'))
        torch.testing.assert_close(features(x)[0], saved.backbone(x)[0])
        torch.testing.assert_close(pooled(x), saved.neck(saved.backbone(x))[0])


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
    weight = 'stages.3.blocks.0.ffn.fc1.weight'
    assert torch.equal(backbone.state_dict()[weight], first.backbone.state_dict()[weight])


def test_classifier_of_other_classes_is_refused(checkpoint: tuple[str, torch.nn.Module]) -> None:
    """A head that does not fit is never left at random."""
    with pytest.raises(UserError, match=r'\(3, 256\).*expected.*\(1000, 256\).*num_classes'):
        mmlavit.create_model('lavit_nano', checkpoint_path=checkpoint[0])


def test_checkpoint_without_classifier_is_refused(tmp_path: Path) -> None:
    """A backbone alone does not make a classifier."""
    torch.save(LaViT('nano').state_dict(), tmp_path / 'backbone.pth')
    with pytest.raises(UserError, match='no key that starts with .head.fc.'):
        mmlavit.create_model('lavit_nano', checkpoint_path=str(tmp_path / 'backbone.pth'))


def test_checkpoint_of_another_variant_is_refused(checkpoint: tuple[str, torch.nn.Module]) -> None:
    """The transfer is the strict one."""
    with pytest.raises(UserError, match='does not fit LaViTFeatures'):
        mmlavit.create_model('lavit_tiny', checkpoint_path=checkpoint[0], features_only=True)


def test_missing_checkpoint_is_named() -> None:
    """The message names the file and no config key, since there is no config."""
    with pytest.raises(UserError, match=r"checkpoint 'nowhere.pth' does not exist$"):
        mmlavit.create_model('lavit_nano', checkpoint_path='nowhere.pth')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model_name': 'lavit_smal'}, "expected one of lavit_nano, .*mean 'lavit_small'"),
        ({'model_name': 'small'}, "mean 'lavit_small'"),
        ({'pretrained': True}, 'no weights are published'),
        ({'features_only': True, 'num_classes': 3}, 'num_classes=3: features_only'),
        ({'out_indices': (1,)}, r'out_indices=\(1,\): needs features_only'),
        ({'features_only': True, 'out_indices': (4,)}, r'out_indices=\(4,\)'),
        ({'num_classes': -1}, 'num_classes=-1'),
        (
            {'init_cfg': {'type': 'Pretrained'}},
            r"init_cfg={'type'.*: name the file as checkpoint_path",
        ),
        ({'arch': 'tiny'}, "arch='tiny': model_name names it"),
        ({'in_channels': 4}, 'in_channels=4: the argument is called in_chans'),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options: dict, message: str) -> None:
    """One message names the argument, what was found and what is expected."""
    with pytest.raises(ValueError, match=message):
        mmlavit.create_model(**{'model_name': 'lavit_nano', **options})


def test_unknown_attribute_is_an_attribute_error() -> None:
    """The lazy exports do not hide a typo."""
    with pytest.raises(AttributeError, match='creat_model'):
        mmlavit.creat_model  # noqa: B018


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

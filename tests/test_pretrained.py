"""Transfer of a checkpoint: complete and said so, or refused."""

import copy

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint

from mmlavit.errors import UserError
from mmlavit.models import LaViT
from mmlavit.models.key_differences import check_belongs
from mmlavit.models.layers import resize_transform


@pytest.fixture
def messages(request):
    """What the current mmengine logger says."""
    logger, said = MMLogger.get_instance(request.node.name), []
    MMLogger._instance_dict.move_to_end(request.node.name)
    logger.addFilter(lambda record: said.append(record.getMessage()) or True)
    return said


@pytest.fixture(scope='module')
def source():
    """A backbone as classification leaves it, with one output."""
    backbone = LaViT('tiny', out_indices=(3,))
    for param in backbone.parameters():
        torch.nn.init.normal_(param)
    return backbone


@pytest.fixture
def content(source):
    """What classification saves: a head beside the backbone."""
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    return {'meta': {}, 'state_dict': state | {'head.fc.weight': torch.zeros(3, 512)}}


@pytest.fixture
def path(content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


def dense(path, arch='tiny', prefix='backbone.', **options):
    init = {'type': 'Pretrained', 'checkpoint': str(path), 'prefix': prefix}
    model = LaViT(arch, init_cfg=init, **options)
    model.init_weights()
    return model


def test_transfer_copies_every_tensor_and_says_so(source, path, messages):
    state = dense(path).state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(state[name], value), name
    count, said = len(source.state_dict()), '\n'.join(messages)
    assert f'loaded {count}/{count} backbone tensors from {path}' in said
    assert 'left out, not part of this backbone: 1: head.fc.weight' in said
    assert 'new, not in the file: 6: norm0.weight, norm0.bias, norm1.weight' in said


@pytest.mark.parametrize('prefix', [None, 'backbone', 'plain'])
def test_prefix_may_be_left_to_the_loader(source, path, prefix):
    """Also where the file holds a backbone's weights alone."""
    if prefix == 'plain':
        torch.save(source.state_dict(), path)
    found = dense(path, prefix=None if prefix == 'plain' else prefix)
    assert torch.equal(found.norm3.weight, source.norm3.weight)


def test_start_values_follow_init_cfg():
    """A user's own initialization counts, and start values without one stay as they are."""
    kaiming = [dict(type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='linear')]
    for init_cfg, changes in ((kaiming, True), (None, False)):
        model = LaViT('nano', init_cfg=init_cfg)
        before = copy.deepcopy(model)
        model.init_weights()
        first, old = model.stages[0], before.stages[0]
        assert torch.equal(first.embed.proj.weight, old.embed.proj.weight) != changes
        assert torch.equal(first.blocks[0].attn.qkv.weight, old.blocks[0].attn.qkv.weight)


def test_fewer_stages_leave_the_rest_out(source, path, messages):
    state = dense(path, out_indices=(0, 1, 2)).state_dict()
    loaded, said = sum(k.startswith('stages.') for k in state), '\n'.join(messages)
    assert f'loaded {loaded}/{len(source.state_dict())} backbone tensors' in said
    assert 'backbone.stages.3.' in said


def test_transforms_are_resized_by_value_and_named(source, path, messages):
    model = dense(path, window_size=(7, 8, 5, 7))
    for name, value in source.state_dict().items():
        got = model.state_dict()[name]
        expected = value if got.shape == value.shape else resize_transform(value, len(got))
        assert torch.equal(got, expected), name
    said = '\n'.join(messages)
    assert 'resized stages.1.blocks.1.attn.theta: 49 -> 64 tokens a window' in said
    assert 'resized stages.2.blocks.2.attn.psi: 49 -> 25 tokens a window' in said
    assert 'stages.3.blocks.1.attn.theta: 49' not in said


def test_mmengine_loading_resizes_too(source, path):
    """`load_from` and `tools/test.py` go through mmengine's own loader."""
    torch.save({'state_dict': source.state_dict()}, path)
    model = LaViT('tiny', window_size=14, out_indices=(3,))
    load_checkpoint(model, str(path), strict=True)
    theta = source.state_dict()['stages.2.blocks.1.attn.theta']
    assert torch.equal(model.stages[2].blocks[1].attn.theta, resize_transform(theta, 196))


def test_a_checkpoint_of_version_0_1_0_loads(source, content, path):
    """Its residuals' kernels have five axes; each way of loading takes them."""
    for key, value in content['state_dict'].items():
        if key.endswith('residual.kernel'):
            content['state_dict'][key] = value.unflatten(2, (2, 2)).unflatten(1, (2, 2))
    torch.save(content, path)
    model = torch.nn.Module()
    model.backbone, model.head = LaViT('tiny', out_indices=(3,)), torch.nn.Module()
    model.head.fc = torch.nn.Linear(512, 3, bias=False)
    check_belongs(content, model, 'a.pth')
    before = {key: value.shape for key, value in content['state_dict'].items()}
    model.load_state_dict(content['state_dict'])
    assert {key: value.shape for key, value in content['state_dict'].items()} == before
    for loaded in (model.backbone.state_dict(), dense(path).state_dict()):
        for name, value in source.state_dict().items():
            assert torch.equal(loaded[name], value), name


def test_resizing_keeps_smooth_transforms_and_row_sums():
    def separable(side):
        grid = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(grid, grid, indexing='ij')
        function = (torch.sin(2 * y) + x).flatten()
        return function[:, None] * function[None, :]

    def inside(weight, side):  # the border has no neighbours to interpolate between
        cut = slice(2 * side // 7, side - 2 * side // 7)
        return weight.view(side, side, side, side)[cut, cut, cut, cut]

    small, large = separable(7), separable(14)
    # a row sums over four times as many tokens
    for start, end, side, factor in ((small, large, 14, 4), (large, small, 7, 1 / 4)):
        got = inside(resize_transform(start, side**2) * factor, side)
        torch.testing.assert_close(got, inside(end, side), rtol=0.02, atol=0.02)
    for tokens in (16, 49, 196):
        sums = resize_transform(torch.full((49, 49), 0.3), tokens).sum(-1)
        torch.testing.assert_close(sums, torch.full((tokens,), 0.3 * 49))
    torch.testing.assert_close(resize_transform(small, 49), small)


def test_resizing_keeps_the_axes_apart():
    """A weight from one key to one query stays between the same two corners of the window."""
    weight = torch.zeros(49, 49)
    weight[0, 48] = 1.0  # query top left, key bottom right
    assert resize_transform(weight, 196).abs().argmax() == 195


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('norm3.bias', None, r'missing from the file: 1: norm3\.bias'),
        ('norm1.weight', (128,), r'missing from the file: 1: norm1\.bias'),
        ('stages.1.blocks.0.attn.qkv.weight', None, r'missing from .*attn\.qkv\.weight'),
        ('stages.1.blocks.0.attn.bias_table', (3,), r'not in the model: 1: .*attn\.bias_table'),
        ('stages.0.embed.proj.weight', (64, 3, 2, 2), r'\(64, 3, 2, 2\) in the file, \(64, 3, 4'),
    ],
)
def test_any_other_difference_stops_with_the_keys(content, path, key, value, message):
    """A tensor that is missing, unknown or of another shape."""
    if value is None:
        del content['state_dict'][f'backbone.{key}']
    else:
        content['state_dict'][f'backbone.{key}'] = torch.ones(value)
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        dense(path)


def test_a_detector_hands_on_its_backbone(tmp_path, messages):
    """Its LaViT is complete, and what else it has is named; a ResNet or another size is refused."""
    own = {}
    for name, cfg in (
        ('ours', Config.fromfile(ROOT / 'configs/shapes/retinanet_lavit-nano_shapes.py')),
        ('theirs', get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')),
    ):
        cfg.model.backbone.init_cfg = None
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(cfg.model)
        torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / f'{name}.pth')
        own = own or model.backbone.state_dict()
    found = dense(tmp_path / 'ours.pth', 'nano').state_dict()
    said = '\n'.join(messages)
    assert all(torch.equal(found[key], value) for key, value in own.items())
    assert f'loaded {len(own)}/{len(own)} backbone tensors' in said
    assert 'left out, not part of this backbone' in said and 'neck.lateral_convs.0' in said
    for arch, name, named in (
        ('nano', 'theirs.pth', ('stages', 'conv1.weight')),
        ('tiny', 'ours.pth', ('stages.2', 'shape')),
    ):
        with pytest.raises(UserError) as error:
            dense(tmp_path / name, arch)
        first, *differences = str(error.value).splitlines()
        assert first == f'{tmp_path / name} does not fit LaViT:'
        assert all(any(text in line for line in differences) for text in named)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'a.pth does not exist.*init_cfg=None'),
        ('text', "a.pth' is damaged, or was not written by torch.save"),
        (3, "a.pth' has no state_dict: found a int"),
        ({'optimizer': {}, 'epoch': 3}, r'found a dict that is no state dict\n.*epoch, optimizer'),
        ({'state_dict': {'conv1.weight': torch.zeros(1)}}, r"with 'backbone.'\n.*conv1.weight"),
    ],
)
def test_what_is_no_checkpoint_is_said(content, message, tmp_path):
    path = tmp_path / 'a.pth'
    if content == 'text':
        path.write_text('not a checkpoint')
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        dense(path)

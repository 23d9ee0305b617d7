"""Transfer of a checkpoint: complete and said so, or refused."""

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint, save_checkpoint

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


def classifier(**options):
    """Backbone and file content as classification leaves them: one output, a head beside it."""
    backbone = LaViT('tiny', out_indices=(3,), **options)
    with torch.no_grad():
        for param in backbone.parameters():
            param.normal_()
    state = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    return backbone, {'meta': {}, 'state_dict': state | {'head.fc.weight': torch.zeros(3, 512)}}


def dense(path, **options):
    init = {'type': 'Pretrained', 'checkpoint': str(path), 'prefix': 'backbone.'}
    model = LaViT('tiny', init_cfg=init, **options)
    model.init_weights()
    return model


def test_transfer_copies_every_tensor_and_says_so(tmp_path, messages):
    source, content = classifier()
    torch.save(content, tmp_path / 'a.pth')
    state = dense(tmp_path / 'a.pth').state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(state[name], value), name
    count = len(source.state_dict())
    said = '\n'.join(messages)
    assert f'loaded {count}/{count} backbone tensors from {tmp_path / "a.pth"}' in said
    assert 'left out, not part of this backbone: 1: head.fc.weight' in said
    assert 'new, not in the file: 6: norm0.weight, norm0.bias, norm1.weight' in said


@pytest.mark.parametrize('prefix', [None, 'backbone', 'backbone.', 'plain'])
def test_prefix_may_be_left_to_the_loader(tmp_path, prefix):
    """Also where the file holds a backbone's weights alone."""
    source, content = classifier()
    torch.save(source.state_dict() if prefix == 'plain' else content, tmp_path / 'a.pth')
    init = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'a.pth')}
    model = LaViT('tiny', init_cfg=[init if prefix == 'plain' else {**init, 'prefix': prefix}])
    model.init_weights()
    assert torch.equal(model.norm3.weight, source.norm3.weight)


def test_fewer_stages_leave_the_rest_out(tmp_path, messages):
    _, content = classifier()
    torch.save(content, tmp_path / 'a.pth')
    model = dense(tmp_path / 'a.pth', out_indices=(0, 1, 2))
    found = [k for k in content['state_dict'] if k.startswith('backbone.')]
    loaded = sum(k.startswith('stages.') for k in model.state_dict())
    said = '\n'.join(messages)
    assert f'loaded {loaded}/{len(found)} backbone tensors' in said
    assert loaded < len(found)
    assert 'backbone.stages.3.' in said


def test_transforms_are_resized_by_value_and_named(tmp_path, messages):
    source, content = classifier()
    torch.save(content, tmp_path / 'a.pth')
    model = dense(tmp_path / 'a.pth', window_size=(7, 8, 5, 7))
    for name, value in source.state_dict().items():
        got = model.state_dict()[name]
        expected = value if got.shape == value.shape else resize_transform(value, len(got))
        assert torch.equal(got, expected), name
    said = '\n'.join(messages)
    assert 'resized stages.1.blocks.1.attn.theta: 49 -> 64 tokens a window' in said
    assert 'resized stages.2.blocks.2.attn.psi: 49 -> 25 tokens a window' in said
    assert 'stages.3.blocks.1.attn.theta: 49' not in said


def test_mmengine_loading_resizes_too(tmp_path):
    """`load_from` and `tools/test.py` go through mmengine's own loader."""
    source, _ = classifier()
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'a.pth')
    model = LaViT('tiny', window_size=14, out_indices=(3,))
    load_checkpoint(model, str(tmp_path / 'a.pth'), strict=True)
    theta = source.state_dict()['stages.2.blocks.1.attn.theta']
    assert torch.equal(model.stages[2].blocks[1].attn.theta, resize_transform(theta, 196))


def test_a_checkpoint_of_version_0_1_0_loads(tmp_path):
    """Its residuals' kernels have five axes; each way of loading takes them."""
    source, content = classifier()
    for key, value in content['state_dict'].items():
        if key.endswith('residual.kernel'):
            content['state_dict'][key] = value.unflatten(2, (2, 2)).unflatten(1, (2, 2))
    torch.save(content, tmp_path / 'a.pth')
    model = torch.nn.Module()
    model.backbone, model.head = LaViT('tiny', out_indices=(3,)), torch.nn.Module()
    model.head.fc = torch.nn.Linear(512, 3, bias=False)
    check_belongs(content, model, 'a.pth')
    before = {key: value.shape for key, value in content['state_dict'].items()}
    model.load_state_dict(content['state_dict'])
    assert {key: value.shape for key, value in content['state_dict'].items()} == before
    for loaded in (model.backbone.state_dict(), dense(tmp_path / 'a.pth').state_dict()):
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
    got = inside(resize_transform(small, 196) * 4, 14)
    torch.testing.assert_close(got, inside(large, 14), rtol=0.02, atol=0.02)
    got = inside(resize_transform(large, 49) / 4, 7)
    torch.testing.assert_close(got, inside(small, 7), rtol=0.02, atol=0.02)
    constant = torch.full((49, 49), 0.3)
    for tokens in (16, 49, 196):
        sums = resize_transform(constant, tokens).sum(-1)
        torch.testing.assert_close(sums, torch.full((tokens,), 0.3 * 49))
    torch.testing.assert_close(resize_transform(small, 49), small)


def test_resizing_keeps_the_axes_apart():
    """A weight from one key to one query stays between the same two corners of the window."""
    weight = torch.zeros(49, 49)
    weight[0, 48] = 1.0  # query top left, key bottom right
    resized = resize_transform(weight, 196).view(14, 14, 14, 14)
    assert resized.abs().argmax() == resized[0, 0, 13, 13].new_tensor(13 * 14 + 13).long()


@pytest.mark.parametrize(('shape', 'tokens'), [((49, 48), 49), ((48, 48), 49), ((49, 49), 48)])
def test_only_square_windows_are_resized(shape, tokens):
    with pytest.raises(ValueError, match='square windows'):
        resize_transform(torch.zeros(shape), tokens)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('norm3.bias', None, r'missing from the file: 1: norm3\.bias'),
        ('norm1.weight', (128,), r'missing from the file: 1: norm1\.bias'),
        ('conv1.weight', (3,), r'not in the model: 1: conv1\.weight'),
        ('stages.1.blocks.0.attn.qkv.weight', None, r'missing from .*attn\.qkv\.weight'),
        ('stages.1.blocks.0.attn.bias_table', (3,), r'not in the model: 1: .*attn\.bias_table'),
        ('stages.0.embed.proj.weight', (64, 3, 2, 2), r'\(64, 3, 2, 2\) in the file, \(64, 3, 4'),
    ],
)
def test_any_other_difference_stops_with_the_keys(tmp_path, key, value, message):
    """A tensor that is missing, unknown or of another shape."""
    _, content = classifier()
    if value is None:
        del content['state_dict'][f'backbone.{key}']
    else:
        content['state_dict'][f'backbone.{key}'] = torch.ones(value)
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=message):
        dense(tmp_path / 'a.pth')


def test_a_detector_hands_on_its_backbone(tmp_path, messages):
    """Its LaViT is complete, and what else it has is named; a ResNet or another size is refused."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        cfg = Config.fromfile(ROOT / 'configs/shapes/retinanet_lavit-nano_shapes.py')
        cfg.model.backbone.init_cfg = None
        ours = MODELS.build(cfg.model)
        theirs = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        theirs.model.backbone.init_cfg = None
        theirs = MODELS.build(theirs.model)
    for name, model in (('ours', ours), ('theirs', theirs)):
        content = {'meta': {}, 'state_dict': model.state_dict()}
        save_checkpoint(content, str(tmp_path / f'{name}.pth'))
    init = {'type': 'Pretrained', 'prefix': 'backbone.'}
    model = LaViT('nano', init_cfg={**init, 'checkpoint': str(tmp_path / 'ours.pth')})
    model.init_weights()
    assert torch.equal(model.norm3.weight, ours.backbone.norm3.weight)
    state, own = model.state_dict(), ours.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in own.items())
    said = '\n'.join(messages)
    assert f'loaded {len(own)}/{len(own)} backbone tensors' in said
    assert 'left out, not part of this backbone' in said and 'neck.lateral_convs.0' in said
    for arch, path in (('nano', 'theirs.pth'), ('tiny', 'ours.pth')):
        model = LaViT(arch, init_cfg={**init, 'checkpoint': str(tmp_path / path)})
        with pytest.raises(UserError) as error:
            model.init_weights()
        first, *differences = str(error.value).splitlines()
        assert first == f'{tmp_path / path} does not fit LaViT:'
        named = ('stages', 'conv1.weight') if path == 'theirs.pth' else ('stages.2', 'shape')
        assert all(any(name in line for line in differences) for name in named)


def test_what_is_no_checkpoint_is_said(tmp_path):
    missing, text, number, optimizer, other = (tmp_path / f'{i}.pth' for i in range(5))
    text.write_text('not a checkpoint')
    torch.save(3, number)
    torch.save({'optimizer': {}, 'epoch': 3}, optimizer)
    torch.save({'state_dict': {'conv1.weight': torch.zeros(1)}}, other)
    for path, error, message in (
        (missing, UserError, '0.pth does not exist.*init_cfg=None'),
        (text, UserError, "1.pth' is damaged, or was not written by torch.save"),
        (number, UserError, "2.pth' has no state_dict: found a int"),
        (optimizer, UserError, r'3.pth: found a dict that is no state dict\n.*epoch, optimizer'),
        (other, UserError, r"4.pth: no key starts with 'backbone.'\n.*conv1.weight"),
    ):
        with pytest.raises(error, match=message):
            dense(path)

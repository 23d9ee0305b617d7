"""Attention maps: how they are collected and measured, the tool that draws them, the hook."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, forget_runs, load_tool
from mmcv.transforms import CenterCrop
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.datasets.transforms import ResizeEdge
from PIL import Image

from mmlavit.engine import (
    DiagonalityHook,
)
from mmlavit.errors import UserError
from mmlavit.models import LaViT, LessAttention, VanillaAttention, diagonality_loss
from mmlavit.models.layers import PAD_VALUE, FusedVanillaAttention, tiles
from mmlavit.visualization.attention_maps import (
    LayerAttention,
    attach_attention_maps,
    collect_attention,
    find_backbone,
)
from mmlavit.visualization.attention_measures import (
    diagonality_terms,
    identity_distance,
    similarity,
    similarity_matrix,
)
from mmlavit.visualization.attention_windows import ImageGeometry, attention_of

TOOL, TRAIN = load_tool('visualize_attention'), load_tool('train')
CONFIGS = {
    'cls': ROOT / 'configs/shapes/lavit-nano_shapes-cls.py',
    'det': ROOT / 'configs/shapes/mask-rcnn_lavit-nano_shapes.py',
    'seg': ROOT / 'configs/shapes/upernet_lavit-nano_shapes.py',
}
DEPTHS = (1, 3, 2, 1)
ARCH = {'channels': (16, 32, 32, 32), 'depths': DEPTHS, 'va_layers': (1, 2, 1, 1), 'head_width': 16}


def make_backbone(**options) -> LaViT:
    """Small, with attention far from uniform and transforms far from the identity."""
    torch.manual_seed(0)
    backbone = LaViT(ARCH, **options).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith('qkv.weight'):
            parameter.data *= 20
        if name.endswith(('theta', 'psi')):
            torch.nn.init.normal_(parameter, std=0.1)
    return backbone


def attentions_of(backbone: LaViT) -> list[torch.nn.Module]:
    return [block.attn for stage in backbone.stages for block in stage.blocks]


def expected_map(module, x, start, group, window):
    """Attention of one window between its real tokens, ``(heads, n, n)``, from the definition."""
    cols, rows = -(-x.shape[2] // window), -(-x.shape[1] // window)
    image, cell = divmod(group, rows * cols)
    top, left = cell // cols * window, cell % cols * window
    tokens = x[image, top : top + window, left : left + window]
    height, width, dim = tokens.shape
    real = [i * window + j for i in range(height) for j in range(width)]
    scores = None if start is None else start[group][:, real][:, :, real]
    if isinstance(module, LessAttention):
        theta, psi = ((torch.eye(len(t)) + t)[real][:, real] for t in (module.theta, module.psi))
        return real, (psi @ scores @ theta.T).softmax(-1)
    q, k, _ = module.qkv(tokens.reshape(-1, dim)).chunk(3, dim=1)
    heads = [h.split(16, dim=1) for h in (q, k)]
    own = torch.stack([a @ b.T / 4 for a, b in zip(*heads, strict=True)])
    return real, (own if scores is None else own + scores).softmax(-1)


@pytest.mark.parametrize('tile_bytes', [tiles.TILE_BYTES, 2**13])
def test_collected_attention_is_the_softmax_of_the_scores(monkeypatch, tile_bytes):
    """In every layer, window and head, padded tokens apart, however the map is cut into tiles."""
    backbone, inputs = make_backbone(), {}
    image = torch.randn(2, 3, 90, 124)
    handles = [
        module.register_forward_pre_hook(lambda m, args: inputs.update({m: args}))
        for module in attentions_of(backbone)
    ]
    with torch.enable_grad():  # in one piece
        backbone(image)
    for handle in handles:
        handle.remove()
    monkeypatch.setattr(tiles, 'TILE_BYTES', tile_bytes)
    layers = collect_attention(backbone, image)
    places = [(stage, i + 1) for stage, depth in enumerate(DEPTHS, 1) for i in range(depth)]
    assert [(a.stage, a.layer) for a in layers] == places
    assert ''.join(a.kind[0] for a in layers) == 'VVVLVLV'
    for module, layer in zip(attentions_of(backbone), layers, strict=True):
        x, start, _ = inputs[module]
        assert layer.size == tuple(x.shape[1:3])
        assert layer.window == 7
        for group, found in enumerate(layer.attention):
            real, expected = expected_map(module, x, start, group, 7)
            torch.testing.assert_close(found[:, real][:, :, real], expected, atol=1e-5, rtol=1e-3)
            padded = [i for i in range(49) if i not in real]
            assert not found[:, real][:, :, padded].any()
            assert layer.mask[group].nonzero().flatten().tolist() == real


def test_collecting_leaves_the_backbone_as_it_was():
    """Outputs are the same with and without, and no hook stays behind, also after an error."""
    backbone, image = make_backbone(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(image)
        handles = attach_attention_maps(backbone, lambda layer: None)
        during = backbone(image)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, during, strict=True))
    with pytest.raises(RuntimeError):
        collect_attention(backbone, image[:, :1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


def test_padding_of_a_batch_does_not_count():
    """An image gives the same numbers alone and padded to a larger batch."""
    backbone = make_backbone()
    image = torch.randn(1, 3, 160, 192)
    padded = torch.full((1, 3, 320, 544), PAD_VALUE)
    padded[..., :160, :192] = image
    alone, batched = (collect_attention(backbone, x) for x in (image, padded))
    for first, second in zip(alone, batched, strict=True):
        for a, b in zip(diagonality_terms(first), diagonality_terms(second), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        similarity_matrix(alone[1:4]), similarity_matrix(batched[1:4]), atol=1e-5, rtol=1e-4
    )


def make_layer(attention, mask=None, stage=2, layer=1, size=(7, 7)) -> LayerAttention:
    return LayerAttention(stage, layer, 'VA', attention, mask, size)


def test_similarity_is_the_mean_cosine_of_real_pairs():
    """By hand; 1 for identical maps; what stands at padded tokens does not matter."""
    maps = torch.randn(2, 3, 2, 9, 9).softmax(-1)
    real = [9, 6, 0]
    mask = torch.arange(9)[None] < torch.tensor(real)[:, None]
    cosines = []
    for g, n in enumerate(real[:2]):
        for h in range(2):
            a, b = (m[g, h, :n, :n].flatten() for m in maps)
            cosines.append(a @ b / (a.norm() * b.norm()))
    first, second = (make_layer(m, mask) for m in maps)
    torch.testing.assert_close(similarity(first, second), torch.stack(cosines).mean())
    torch.testing.assert_close(similarity(first, first), torch.tensor(1.0))
    loud = maps[0].masked_fill(~(mask[:, None, :, None] & mask[:, None, None, :]), 5.0)
    torch.testing.assert_close(similarity(make_layer(loud, mask), first), torch.tensor(1.0))
    matrix = similarity_matrix([first, second])
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix[0, 1], similarity(first, second))
    with pytest.raises(ValueError, match=r'\(3, 2, 9, 9\) \(layer 2.1\) and \(1, 2, 9, 9\)'):
        similarity(first, make_layer(maps[0, :1]))


@pytest.mark.parametrize('real', [(9, 9), (9, 5)])
def test_terms_are_those_of_the_loss(real):
    """They sum to the loss; each is 0 where its property holds, and only there."""
    logits = 3 * torch.randn(2, 2, 9, 9)
    mask = torch.arange(9)[None] < torch.tensor(real)[:, None]
    attention = logits.masked_fill(~mask[:, None, None], -1e9).softmax(-1)
    given = None if min(real) == 9 else mask
    diagonality, symmetry = diagonality_terms(make_layer(attention, given))
    torch.testing.assert_close(diagonality + symmetry, diagonality_loss(logits, given))
    by_hand = [
        (p := attention[g, h, :n, :n]).sub(p.T).abs().sum() / (2 * n)
        for g, n in enumerate(real)
        for h in range(2)
    ]
    torch.testing.assert_close(symmetry, torch.stack(by_hand).mean())
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    peaked = (-torch.minimum(distance, 9 - distance).float()).softmax(-1).expand(1, 1, 9, 9)
    assert max(diagonality_terms(make_layer(peaked))) < 1e-6
    shifted = diagonality_terms(make_layer(peaked.flip(-1)))  # symmetric, peaks elsewhere
    assert shifted[1] < 1e-6 < 0.01 < shifted[0]


def test_distance_from_the_identity():
    """A new layer is at 0; twice the identity is at 1, whatever the window."""
    for window in (3, 7):
        new = LessAttention(16, 1, window)
        assert identity_distance(new.theta) == identity_distance(new.psi) == 0
        new.psi.data += torch.eye(window**2)
        torch.testing.assert_close(identity_distance(new.psi), torch.tensor(1.0))


@pytest.mark.parametrize(('width', 'height'), [(300, 200), (120, 170)])
def test_geometry_follows_a_mark_through_the_pipeline(width, height):
    """Resized and cropped by upstream's transforms, a mark lands where the geometry says."""
    place = np.array([width * 0.45, height * 0.6]).astype(int)
    image = np.zeros((height, width, 3), np.uint8)
    image[place[1] - 4 : place[1] + 5, place[0] - 4 : place[0] + 5] = 255
    results = {'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}
    for transform in (ResizeEdge(128, backend='pillow'), CenterCrop(112)):
        results = transform(results)
    geometry = ImageGeometry.of_sample(results)
    pixels = results['img'][..., 0].astype(float)
    y, x = (np.average(grid, weights=pixels) + 0.5 for grid in np.indices(pixels.shape))
    np.testing.assert_allclose(geometry.to_input(*(place + 0.5)), (x, y), atol=0.6)
    np.testing.assert_allclose(geometry.to_image(x, y), place + 0.5, atol=1.5)
    left, top, right, bottom = geometry.visible
    assert 0 <= left < place[0] < right <= width
    assert 0 <= top < place[1] < bottom <= height
    with pytest.raises(UserError, match='flips the image'):
        ImageGeometry.of_sample({**results, 'flip': True})


def test_attention_of_a_pixel_is_that_of_its_token():
    """Window, token and frame, also at the border where a window is cut."""
    size, groups = (9, 12), 4  # 2 x 2 windows of 7 tokens, stride 8
    attention = torch.arange(groups * 49.0).view(groups, 1, 49, 1).expand(-1, 2, -1, 49)
    rows, cols = torch.meshgrid(torch.arange(14), torch.arange(14), indexing='ij')
    inside = ((rows < 9) & (cols < 12)).view(2, 7, 2, 7).transpose(1, 2).reshape(4, 49)
    layer = make_layer(attention, inside, stage=2, size=size)
    geometry = ImageGeometry((2.0, 2.0), (0.0, 0.0), (96, 72), (48, 36))  # enlarged twice
    for x, y in [(0, 0), (27, 0), (28, 0), (30, 33), (47, 35)]:
        found = attention_of(layer, (x, y), geometry)
        row, col = y * 2 // 8, x * 2 // 8
        group, token = row // 7 * 2 + col // 7, row % 7 * 7 + col % 7
        shape = (7 if row < 7 else 2, 7 if col < 7 else 5)
        assert found.weights.shape == (2, *shape)
        assert (found.weights == group * 49 + token).all()
        left, top = col // 7 * 28, row // 7 * 28
        assert found.box == (left, top, left + shape[1] * 4, top + shape[0] * 4)


class TinyModel(BaseModel):
    """The least model that mmengine trains."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = make_backbone(**options).train()

    def forward(self, inputs, mode='tensor'):
        return {'loss': sum(out.square().mean() for out in self.backbone(inputs))}


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('distributed', [False, True])
def test_training_is_untouched(with_cp, distributed, monkeypatch):
    """Gradients under autocast are those without hooks; recomputed layers do not count again."""
    computed, scores = [], VanillaAttention.scores
    monkeypatch.setattr(
        VanillaAttention, 'scores', lambda self, *args: computed.append(self) or scores(self, *args)
    )
    model: torch.nn.Module = TinyModel(with_cp=with_cp, out_indices=(3,))
    if distributed:
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
        model = MMDistributedDataParallel(model)
    try:
        image, grads, seen = torch.randn(2, 3, 64, 96), [], []
        for attach in (False, True):
            if attach:
                attach_attention_maps(find_backbone(model), seen.append)
            model.zero_grad()
            with torch.autocast('cpu', torch.bfloat16):
                loss = model(image, mode='loss')['loss']
            loss.backward()
            grads.append([p.grad.clone() for p in model.parameters()])
    finally:
        if distributed:
            dist.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert [(a.stage, a.layer) for a in seen] == [
        (stage, i + 1) for stage, depth in enumerate(DEPTHS, 1) for i in range(depth)
    ]
    fused = [m for m in model.modules() if isinstance(m, FusedVanillaAttention)]
    assert computed == fused  # those of layers that hand no scores on, once each
    assert all(a.attention.dtype == torch.float32 for a in seen)
    assert not any(a.attention.requires_grad for a in seen)


def test_hook_refuses_what_it_cannot_measure():
    """The interval and a model without LaViT are named."""
    with pytest.raises(ValueError, match='interval=0'):
        DiagonalityHook(interval=0)
    with pytest.raises(UserError, match='Linear has no mmlavit.LaViT'):
        find_backbone(torch.nn.Linear(1, 1))


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty directory, and leave no default scope, logger or variable behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    forget_runs()
    yield tmp_path
    forget_runs()


@pytest.mark.parametrize('with_cp', [False, True])
def test_hook_logs_scalars_in_a_real_run(isolated: Path, shapes: Path, with_cp: bool, capsys):
    """Every 3rd of 6 iterations, to scalars.json and not into the log's lines, under AMP too."""
    Path('run.py').write_text(
        f'_base_ = {str(CONFIGS["cls"])!r}\n'
        "custom_hooks = [dict(type='mmlavit.DiagonalityHook', interval=3)]\n"
        f'model = dict(backbone=dict(with_cp={with_cp}))\n'
        'train_cfg = dict(max_epochs=2, val_interval=9)\n'
        f'data = dict(data_root={str(shapes / "classification")!r})\n'
        'train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,\n'
        '                        dataset=data)\n'
        'val_dataloader = dict(dataset=data)\n'
        'default_hooks = dict(logger=dict(interval=1))\n'
    )
    TRAIN.main(['run.py', '--work-dir', 'run', '--no-validate', *(['--amp'] * with_cp)])
    (path,) = Path('run').rglob('scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    logged = [line for line in lines if any(key.startswith('attention/') for key in line)]
    assert [line.pop('step') for line in logged] == [3, 6]
    everywhere, middle = (
        ('diagonality', 'symmetry'),
        ('saturation', 'theta_distance', 'psi_distance'),
    )
    names = {f'attention/stage{m}/{name}' for m in (1, 2, 3, 4) for name in everywhere}
    names |= {f'attention/stage{m}/{name}' for m in (2, 3) for name in middle}
    weights = torch.load('run/epoch_2.pth', weights_only=False)['state_dict']
    for line in logged:
        assert set(line) == names
        assert all(np.isfinite(value) for value in line.values())
        assert all(0.5 < line[f'attention/stage{m}/saturation'] <= 1.0001 for m in (2, 3))
    for m in (2, 3):
        for name in ('theta', 'psi'):
            moved = weights[f'backbone.stages.{m - 1}.blocks.1.attn.{name}'].norm() / 7
            assert logged[1][f'attention/stage{m}/{name}_distance'] == pytest.approx(float(moved))
            assert moved > 0
    assert 'Epoch(train) [2][3/3]' in (printed := capsys.readouterr().out)
    assert 'attention/' not in printed.partition('Epoch(train)')[2]


def save_checkpoint(config: Path, path: str, **backbone) -> list[str]:
    """Write a checkpoint with random weights and return it with its config."""
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.update(backbone)
    cfg.dump(f'{path}.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith(('theta', 'psi')):
            torch.nn.init.normal_(parameter, std=0.1)
    classes = ('background', 'circle', 'square', 'triangle')[-3 - (cfg.default_scope == 'mmseg') :]
    meta = {'dataset_meta': {'classes': classes}}
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, f'{path}.pth')
    return [f'{path}.py', f'{path}.pth']


IMAGES = {
    'cls': 'classification/val/circle',
    'det': 'coco/val2017',
    'seg': 'ade20k/images/validation',
}


@pytest.mark.parametrize('task', CONFIGS)
def test_tool_serves_three_toolboxes(isolated: Path, shapes: Path, task: str):
    """Figures of what was asked for, and numbers that agree with each other and the checkpoint."""
    model = save_checkpoint(CONFIGS[task], 'model')
    image = next((shapes / IMAGES[task]).iterdir())
    options = ['--points', '20,30', '--stages', '2', '3']
    if task == 'cls':
        options += ['--compare', *save_checkpoint(CONFIGS[task], 'twin', less_attention=False)]
    TOOL.main([*model, str(image), '--out', 'out', '--device', 'cpu', *options])
    names = {'diagonality', 'saturation', 'similarity', 'transforms'}
    names |= {f'{name}_stage{m}' for m in (2, 3) for name in ('transforms', 'attention_x20_y30')}
    assert {path.name for path in Path('out').iterdir()} == {
        'attention.json', *(f'{name}.png' for name in names)
    }  # fmt: skip
    for path in Path('out').glob('*.png'):
        pixels = np.asarray(Image.open(path).convert('RGB'))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    numbers = json.loads(Path('out/attention.json').read_text())
    labels = ['LaViT', 'all-VA'] if task == 'cls' else ['LaViT']
    assert list(numbers['models']) == labels
    places = [(2, 1, 'VA'), (2, 2, 'LA'), (3, 1, 'VA'), (3, 2, 'LA')]
    layers = numbers['models']['LaViT']['layers']
    assert [(a['stage'], a['layer'], a['kind']) for a in layers] == places
    weights = torch.load('model.pth')['state_dict']
    for layer in layers[1::2]:
        key = f'backbone.stages.{layer["stage"] - 1}.blocks.1.attn.theta'
        assert layer['theta_distance'] == pytest.approx(float(weights[key].norm() / 7), rel=1e-4)
        matrix = numbers['models']['LaViT']['similarity_by_stage'][str(layer['stage'])]
        assert matrix[0][1] == matrix[1][0] == layer['similarity_to_previous'] < 1
    (point,) = numbers['points']
    assert (point['x'], point['y']) == (20, 30)
    for layer in point['layers']:
        heads = np.array(layer['attention'])
        assert len(heads) == 2 * layer['stage'] - 2
        np.testing.assert_allclose(heads.sum((1, 2)), 1, atol=1e-4)
        left, top, right, bottom = layer['window']
        assert left <= 20 < right and top <= 30 < bottom
    if task == 'cls':
        twin = numbers['models']['all-VA']
        assert {layer['kind'] for layer in twin['layers']} == {'VA'}
        assert not any('theta_distance' in layer for layer in twin['layers'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--points', '5'], "argument --points: '5' is no pixel, expected X,Y as 48,52"),
        (['--points', '96,5'], '--points 96,5 is outside of what the model sees: X from 0 to 95'),
        (['--stages', '5'], 'argument --stages: invalid choice: 5'),
        (['--compare', 'none.py', 'none.pth'], "config file 'none.py' does not exist"),
        (['--device', 'cuda:99'], "--device 'cuda:99' cannot be used"),
        (['--cfg-options', 'model.backbone.type=mmlavit.LaVit'], 'mmlavit.LaVit'),
        (['--cfg-options', 'model.backbone.arch=nanno'], "arch='nanno'"),
    ],
)
def test_user_errors(isolated: Path, shapes: Path, fails, options, message):
    """Bad input ends in one message and exit code 2, with nothing written."""
    model = save_checkpoint(CONFIGS['cls'], 'model')
    image = next((shapes / IMAGES['cls']).iterdir())
    assert message in fails(TOOL, *model, str(image), '--out', 'out', *options)
    assert not Path('out').exists()


def test_files_that_cannot_be_used(isolated: Path, shapes: Path, fails):
    """No image, a folder with results, and the checkpoint of another model are named."""
    model = save_checkpoint(CONFIGS['cls'], 'model')
    image = str(next((shapes / IMAGES['cls']).iterdir()))
    assert 'none.png: no such file' in fails(TOOL, *model, 'none.png', '--out', 'out')
    assert "--out 'model.py' is a file" in fails(TOOL, *model, image, '--out', 'model.py')
    assert 'is not empty; --overwrite' in fails(TOOL, *model, image, '--out', '.')
    other = save_checkpoint(CONFIGS['cls'], 'other', less_attention=False)
    message = fails(TOOL, model[0], other[1], image, '--out', 'out')
    assert 'other.pth does not belong to this ImageClassifier' in message

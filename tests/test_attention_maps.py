"""Attention maps are those of the pass, which does not notice; and what is measured on them."""

import math

import numpy as np
import pytest
import torch
from attention_definition import attend_by_definition, valid_pairs, windows_of
from mmcv.transforms import CenterCrop
from mmpretrain.datasets.transforms import ResizeEdge
from small_models import DEPTHS, make_backbone, make_layer

from mmlavit.errors import UserError
from mmlavit.models import diagonality_loss, trace_layers
from mmlavit.ops import Windows
from mmlavit.visualization.attention_maps import (
    ImageGeometry,
    attention_of,
    attention_of_point,
    find_backbone,
)
from mmlavit.visualization.attention_measures import (
    diagonality_terms,
    entropy,
    similarity_matrix,
)

some_windows = pytest.mark.parametrize(
    'windows', [Windows(3, 2, 3, 6), Windows(3, 2, 4, 5)], ids=['whole windows', 'borders']
)
PLACES = [(stage, i + 1) for stage, depth in enumerate(DEPTHS, 1) for i in range(depth)]


@pytest.mark.parametrize('size', [(90, 124), (224, 224)])
def test_maps_are_the_softmax_of_the_logits_of_the_pass(size):
    """In every layer, window and head, also of layers that keep no logits; padding apart."""
    backbone, inputs = make_backbone(), {}
    attentions = [block.attn for stage in backbone.stages for block in stage.blocks]
    for module in attentions:
        module.register_forward_pre_hook(lambda module, args: inputs.update({module: args}))
    with torch.no_grad():
        _, layers = backbone.forward_trace(torch.randn(2, 3, *size))
        assert [(a.stage, a.layer) for a in layers] == PLACES
        assert ''.join(a.kind[0] for a in layers) == 'VVVLVLV'
        for module, layer in zip(attentions, layers, strict=True):
            windows = inputs[module][2]
            assert layer.windows == windows
            _, expected = attend_by_definition(module, *inputs[module])
            for found, pairs, window in zip(
                attention_of(layer), expected, windows_of(windows), strict=True
            ):
                inside = found[:, window.valid][:, :, window.valid]
                torch.testing.assert_close(inside, pairs.softmax(-1), atol=1e-5, rtol=1e-3)
                torch.testing.assert_close(found.sum(), inside.sum())


@pytest.mark.parametrize('with_cp', [False, True])
def test_training_is_untouched(with_cp):
    """Gradients under autocast are those without a trace; recomputed layers do not count again."""
    model = torch.nn.Sequential(make_backbone(with_cp=with_cp, out_indices=(3,))).train()
    image, grads, seen = torch.randn(2, 3, 90, 124), [], []
    for attach in (False, True):
        if attach:
            trace_layers(find_backbone(model), seen.append)
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            loss = model(image)[0].square().mean()
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert [(a.stage, a.layer) for a in seen] == PLACES
    maps = [attention_of(layer) for layer in seen]
    assert all(m.dtype == torch.float32 and not m.requires_grad for m in maps)


def test_a_pass_that_fails_hands_nothing_over():
    """The next one is complete, and no hook of a trace stays behind."""
    backbone, seen, image = make_backbone(), [], torch.randn(1, 3, 64, 64)
    handles = trace_layers(backbone, seen.append, kinds=('LA',))
    fail = backbone.norm3.register_forward_pre_hook(lambda module, args: {}['no such key'])
    for run in (backbone, backbone.forward_trace):
        with pytest.raises(KeyError):
            run(image)
    assert seen == []
    fail.remove()
    backbone(image)
    assert [(a.stage, a.layer) for a in seen] == [(2, 3), (3, 2)]
    for handle in handles:
        handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


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
    windows = Windows(7, 1, 9, 12)  # 2 x 2 windows, stride 8
    logits = torch.randn(4, 2, 49, 49)
    layer = make_layer(logits, windows, stage=2)
    geometry = ImageGeometry((2.0, 2.0), (0.0, 0.0), (96, 72), (48, 36))  # enlarged twice
    for x, y in [(0, 0), (27, 0), (28, 0), (30, 33), (47, 35)]:
        found = attention_of_point(layer, (x, y), geometry)
        row, col = y * 2 // 8, x * 2 // 8
        shape = (7 if row < 7 else 2, 7 if col < 7 else 5)
        group, token = row // 7 * 2 + col // 7, row % 7 * shape[1] + col % 7
        expected = valid_pairs(logits, windows)[group].softmax(-1)[:, token].view(2, *shape)
        np.testing.assert_allclose(found.weights, expected, rtol=1e-5, atol=1e-7)
        left, top = col // 7 * 28, row // 7 * 28
        assert found.box == (left, top, left + shape[1] * 4, top + shape[0] * 4)


def logits_of(windows):
    return 3 * torch.randn(2 * windows.rows * windows.cols, 2, 9, 9)


@some_windows
def test_similarity_is_the_mean_cosine_of_valid_pairs(windows):
    """By hand; 1 for identical maps."""
    first, second = logits_of(windows), logits_of(windows)
    cosines = []
    for pairs in zip(*(valid_pairs(m, windows) for m in (first, second)), strict=True):
        a, b = (p.softmax(-1).flatten(1) for p in pairs)
        cosines.append(torch.cosine_similarity(a, b))
    mean = torch.cat(cosines).mean().item()
    matrix = similarity_matrix([make_layer(m, windows) for m in (first, second, first)])
    expected = torch.tensor([[1, mean, 1], [mean, 1, mean], [1, mean, 1]])
    torch.testing.assert_close(matrix, expected)


@some_windows
def test_terms_are_those_of_the_loss(windows):
    """They sum to the loss, and symmetry is what it says."""
    logits = logits_of(windows)
    diagonality, symmetry = diagonality_terms(make_layer(logits, windows))
    torch.testing.assert_close(diagonality + symmetry, diagonality_loss(logits, windows))
    by_hand = [
        (p := head.softmax(-1)).sub(p.T).abs().sum() / (2 * len(p))
        for pairs in valid_pairs(logits, windows)
        for head in pairs
    ]
    torch.testing.assert_close(symmetry, torch.stack(by_hand).mean())


@some_windows
def test_entropy_is_between_one_token_and_all(windows):
    """By hand; padding counts as nothing."""
    logits = logits_of(windows)
    rows = [pairs.softmax(-1) for pairs in valid_pairs(logits, windows) if pairs.shape[-1] > 1]
    by_hand = [-(p * p.log()).sum(-1).mean() / math.log(p.shape[-1]) for p in rows]
    torch.testing.assert_close(entropy(make_layer(logits, windows)), torch.stack(by_hand).mean())
    assert entropy(make_layer(0 * logits, windows)) == pytest.approx(1)
    own = torch.eye(9).expand_as(logits)
    assert entropy(make_layer(99 * own, windows)) == pytest.approx(0, abs=1e-5)

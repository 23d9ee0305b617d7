"""The diagonality-preserving loss, as a function and inside a training step."""

import pytest
import torch
from attention_definition import valid_pairs
from mmengine.model import BaseModel

from mmlavit.engine import DiagonalityLossHook
from mmlavit.engine.hooks import attach_diagonality_loss
from mmlavit.errors import UserError
from mmlavit.models import DiagonalityLoss, LaViT, diagonality_loss
from mmlavit.models.layers import LessAttention
from mmlavit.ops import Windows


def by_hand(logits, form):
    """One map ``(N, N)``, written out from the definition."""
    n = len(logits)
    if form == 'hinge':
        logits = logits.softmax(-1)
    symmetry = sum(abs(logits[i, j] - logits[j, i]) for i in range(n) for j in range(n)) / n**2
    rows = []
    for i in range(n):
        others = [logits[i, j] for j in range(n) if j != i]
        if form == 'hinge':
            rows.append(sum(max(0, o - logits[i, i]) for o in others) / max(len(others), 1))
        else:
            rows.append(sum(others) - (n - 1) * logits[i, i])
    return symmetry * n / 2 + sum(rows) / n


@pytest.mark.parametrize('form', ['hinge', 'linear'])
@pytest.mark.parametrize('size', [(6, 3), (4, 5)])
def test_equals_its_definition_on_valid_tokens(form, size):
    """Window by window and head by head, whatever stands at padding."""
    windows = Windows(3, 1, *size)
    logits = torch.randn(windows.rows * windows.cols, 2, 9, 9, dtype=torch.float64)
    values = [by_hand(head, form) for pairs in valid_pairs(logits, windows) for head in pairs]
    expected = torch.stack(values).mean()
    torch.testing.assert_close(diagonality_loss(logits, windows, form), expected)
    if windows.valid(logits) is None:
        torch.testing.assert_close(diagonality_loss(logits, None, form), expected)


def test_hinge_is_zero_exactly_for_a_symmetric_diagonally_peaked_map():
    logits = torch.randn(2, 3, 6, 6)
    # a circulant map with its peak on the diagonal is symmetric after the softmax too
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    good = -torch.minimum(distance, 6 - distance).float().expand(2, 3, 6, 6)
    assert diagonality_loss(good) == 0
    assert diagonality_loss(logits) > 0
    assert diagonality_loss(good.roll(1, -1)) > 0  # peaks beside the diagonal
    lopsided = good.clone()
    lopsided[..., 0, 1] -= 0.5  # still peaked, no longer symmetric
    assert diagonality_loss(lopsided) > 0


def test_hinge_is_bounded_and_linear_is_not():
    logits = 1e4 * torch.randn(4, 2, 49, 49)
    assert 0 <= diagonality_loss(logits) <= 2
    peaked = 1e4 * torch.eye(49).expand(1, 1, 49, 49)
    assert diagonality_loss(peaked) == 0
    assert diagonality_loss(peaked, form='linear') < -1e5


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_a_finite_float32_loss(dtype):
    loss = diagonality_loss((1e4 * torch.randn(2, 2, 9, 9)).to(dtype))
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_unknown_form_is_named():
    for build in (lambda: DiagonalityLoss(form='l2'), lambda: DiagonalityLossHook(form='l2')):
        with pytest.raises(ValueError, match="form='l2'.*'hinge', 'linear'"):
            build()
    with pytest.raises(ValueError, match="form='l2'"):
        diagonality_loss(torch.zeros(1, 1, 2, 2), form='l2')


class TinyModel(BaseModel):
    """The least model that mmengine trains: a backbone and one loss."""

    def __init__(self, **options):
        super().__init__()
        arch = {'channels': (16,) * 4, 'depths': (1, 3, 1, 1), 'va_layers': (1,) * 4,
                'head_width': 16}  # fmt: skip
        self.backbone = LaViT(arch, out_indices=(1,), **options)

    def forward(self, inputs, mode='tensor'):
        out = self.backbone(inputs)[0]
        return {'loss_task': 0 * out.sum()} if mode == 'loss' else out


def make_model(seed=0, **options):
    torch.manual_seed(seed)
    model = TinyModel(**options)
    for layer in model.modules():
        if isinstance(layer, LessAttention):
            torch.nn.init.normal_(layer.theta, std=0.1)
            torch.nn.init.normal_(layer.psi, std=0.1)
    return model


def test_loss_dp_is_the_weighted_mean_over_less_attention_layers():
    model, seen = make_model(), []
    for layer in model.modules():
        if isinstance(layer, LessAttention):
            layer.register_forward_hook(lambda m, a, out: seen.append((out[1], a[2])))
    attach_diagonality_loss(model, DiagonalityLoss(0.3))
    losses = model(torch.randn(2, 3, 50, 70), mode='loss')
    expected = sum(diagonality_loss(logits, windows) for logits, windows in seen) / 2
    assert set(losses) == {'loss_task', 'loss_dp'}
    assert len(seen) == 2
    torch.testing.assert_close(losses['loss_dp'], 0.3 * expected)
    assert losses['loss_dp'] > 0


def test_loss_dp_reaches_every_transform_also_when_activations_are_recomputed():
    image, grads = torch.randn(2, 3, 50, 70), []
    for with_cp in (False, True):
        model = make_model(with_cp=with_cp)
        attach_diagonality_loss(model, DiagonalityLoss())
        total, log = model.parse_losses(model(image, mode='loss'))
        total.backward()
        assert log['loss'] == log['loss_dp']
        grads.append({n: p.grad for n, p in model.named_parameters()})
        # a second step counts its own layers only
        again = model(image, mode='loss')['loss_dp']
        torch.testing.assert_close(again, log['loss_dp'])
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name
        if name.endswith(('theta', 'psi')):
            assert grad.any(), name


def test_other_modes_and_a_detached_model_are_untouched():
    model = make_model()
    handles = attach_diagonality_loss(model, DiagonalityLoss())
    assert isinstance(model(torch.randn(1, 3, 32, 32)), torch.Tensor)
    for handle in handles:
        handle.remove()
    assert set(model(torch.randn(1, 3, 32, 32), mode='loss')) == {'loss_task'}


def test_all_backbones_of_a_model_count():
    """As where a second backbone sees depth: the mean is over the layers of both."""
    image, model = torch.randn(1, 3, 50, 70), make_model()
    other = make_model(seed=1).backbone
    model.backbone.register_forward_hook(lambda module, args, out: other(*args) and None)
    attach_diagonality_loss(model, DiagonalityLoss())
    alone = model(image, mode='loss')['loss_dp']
    model.second = other
    attach_diagonality_loss(model, DiagonalityLoss())
    with torch.no_grad():
        layers = other.forward_trace(image)[1]
    own = torch.stack([diagonality_loss(x.logits, x.windows) for x in layers if x.kind == 'LA'])
    both = model(image, mode='loss')['loss_dp']
    torch.testing.assert_close(both, (alone + own.mean()) / 2)


def test_only_the_loss_of_a_model_without_less_attention_is_refused():
    """Training without it is a mistake; a tool that asks for no loss may use any model."""
    model, image = make_model(less_attention=False), torch.randn(1, 3, 32, 32)
    attach_diagonality_loss(model, DiagonalityLoss())
    assert isinstance(model(image), torch.Tensor)
    with pytest.raises(UserError, match='TinyModel has no less-attention layer'):
        model(image, mode='loss')

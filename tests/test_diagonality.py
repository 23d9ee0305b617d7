"""The diagonality-preserving loss, as a function and inside a training step."""

import pytest
import torch
from attention_definition import valid_pairs
from mmengine.model import BaseModel
from small_models import DEEPER_ARCH

from mmlavit.engine import DiagonalityLossHook
from mmlavit.engine.hooks import attach_diagonality_loss
from mmlavit.errors import UserError
from mmlavit.models import DiagonalityLoss, LaViT, diagonality_loss
from mmlavit.ops import Windows


def by_hand(logits, form):
    """One map ``(N, N)``, written out from the definition."""
    n = len(logits)
    if form == 'hinge':
        logits = logits.softmax(-1)
    symmetry = sum(abs(logits[i, j] - logits[j, i]) for i in range(n) for j in range(n)) / n**2
    rows = 0
    for i in range(n):
        excess = [logits[i, j] - logits[i, i] for j in range(n) if j != i]
        rows += sum(max(0, e) for e in excess) / max(n - 1, 1) if form == 'hinge' else sum(excess)
    return symmetry * n / 2 + rows / n


@pytest.mark.parametrize('form', ['hinge', 'linear'])
@pytest.mark.parametrize('size', [(6, 3), (4, 7)])
def test_equals_its_definition_on_valid_tokens(form, size):
    """Window by window and head by head, whatever stands at padding."""
    windows = Windows(3, 2, *size)
    logits = torch.randn(2 * windows.rows * windows.cols, 2, 9, 9, dtype=torch.float64)
    values = [by_hand(head, form) for pairs in valid_pairs(logits, windows) for head in pairs]
    expected, valid = torch.stack(values).mean(), windows.valid(logits)
    if valid is None:
        torch.testing.assert_close(diagonality_loss(logits, None, form), expected)
    else:
        logits = logits.masked_fill(valid * valid.mT == 0, 1e6)
    torch.testing.assert_close(diagonality_loss(logits, windows, form), expected)


def test_hinge_is_zero_exactly_for_a_symmetric_diagonally_peaked_map():
    # a circulant map with its peak on the diagonal is symmetric after the softmax too
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    good = -torch.minimum(distance, 6 - distance).float().expand(2, 3, 6, 6)
    assert diagonality_loss(good) == 0
    assert diagonality_loss(good.roll(1, -1)) > 0  # peaks beside the diagonal
    lopsided = good.clone()
    lopsided[..., 0, 1] -= 0.5  # still peaked, no longer symmetric
    assert diagonality_loss(lopsided) > 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_hinge_is_bounded_and_linear_is_not(dtype):
    """In float32, of half-precision logits too."""
    loss = diagonality_loss((1e4 * torch.randn(4, 2, 49, 49)).to(dtype))
    assert loss.dtype == torch.float32
    assert 0 <= loss <= 2
    peaked = 1e4 * torch.eye(49).expand(1, 1, 49, 49)
    assert diagonality_loss(peaked) == 0
    assert diagonality_loss(peaked, form='linear') < -1e5


@pytest.mark.parametrize('build', [DiagonalityLoss, DiagonalityLossHook])
def test_unknown_form_is_named(build):
    with pytest.raises(ValueError, match="form='l2'.*'hinge', 'linear'"):
        build(form='l2')


class TinyModel(BaseModel):
    """The least model that mmengine trains: a backbone and one loss."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = LaViT(DEEPER_ARCH, out_indices=(2,), **options)

    def forward(self, inputs, mode='tensor'):
        out = self.backbone(inputs)[0]
        return {'loss_task': 0 * out.sum()} if mode == 'loss' else out


def make_model(seed=0, **options):
    torch.manual_seed(seed)
    model = TinyModel(**options)
    for name, parameter in model.named_parameters():
        if name.endswith(('theta', 'psi')):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def layer_losses(backbone, image):
    """The loss of each less-attention layer."""
    with torch.no_grad():
        layers = backbone.forward_trace(image)[1]
    return [diagonality_loss(a.logits, a.windows) for a in layers if a.kind == 'LA']


def test_loss_dp_is_the_weighted_mean_over_less_attention_layers():
    """Those of all backbones, as where a second one sees depth; other modes have no loss."""
    image, model = torch.randn(2, 3, 50, 70), make_model()
    handles = attach_diagonality_loss(model, DiagonalityLoss(0.3))
    assert isinstance(model(image), torch.Tensor)
    values = layer_losses(model.backbone, image)
    losses = model(image, mode='loss')
    assert set(losses) == {'loss_task', 'loss_dp'}
    assert len(values) == 2
    torch.testing.assert_close(losses['loss_dp'], 0.3 * sum(values) / 2)
    for handle in handles:
        handle.remove()
    assert set(model(image, mode='loss')) == {'loss_task'}

    model.second = make_model(seed=1).backbone
    model.backbone.register_forward_hook(lambda module, args, out: model.second(*args) and None)
    attach_diagonality_loss(model, DiagonalityLoss())
    values += layer_losses(model.second, image)
    torch.testing.assert_close(model(image, mode='loss')['loss_dp'], sum(values) / 4)


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
        torch.testing.assert_close(model(image, mode='loss')['loss_dp'], log['loss_dp'])
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name
        if name.endswith(('theta', 'psi')):
            assert grad.any(), name


def test_only_the_loss_of_a_model_without_less_attention_is_refused():
    """Training without it is a mistake; a tool that asks for no loss may use any model."""
    model, image = make_model(less_attention=False), torch.randn(1, 3, 32, 32)
    attach_diagonality_loss(model, DiagonalityLoss())
    assert isinstance(model(image), torch.Tensor)
    with pytest.raises(UserError, match='TinyModel has no less-attention layer'):
        model(image, mode='loss')

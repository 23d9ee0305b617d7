"""Derivatives beyond a training step: second ones, those of single images, and none at all."""

import pytest
import torch
from small_models import make_model
from torch.nn.attention import SDPBackend, sdpa_kernel


def model_and_image(batch=1, **options):
    """Of a size that fills no windows."""
    model = make_model(window_size=2, out_indices=(0, 1), **options).double()
    return model, torch.randn(batch, 3, 9, 13, dtype=torch.float64)


@pytest.mark.parametrize('less_attention', [True, False])
def test_second_derivatives(less_attention):
    """Against finite differences; torch's fused attention has none."""
    model, image = model_and_image(less_attention=less_attention)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(
            lambda image: model(image), (image.requires_grad_(),), fast_mode=True, atol=1e-4
        )


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_gradient_penalty_reaches_every_parameter(with_cp):
    """Also through blocks whose activations are computed again."""
    model, image = model_and_image(with_cp=with_cp)
    image.requires_grad_()
    loss = sum(m.sin().sum() for m in model(image))
    (gradient,) = torch.autograd.grad(loss, image, create_graph=True)
    gradient.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # what shifts the last maps alone drops out of the gradient
    assert without == []


def test_transforms_of_torch_func():
    """Gradients and maps of single images by vmap are those of a loop."""
    model, images = model_and_image(3)
    images, parameters = images[:, None], dict(model.named_parameters())

    def loss(parameters, image):
        return sum(m.sin().sum() for m in torch.func.functional_call(model, parameters, (image,)))

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
    with torch.no_grad():
        maps = torch.func.vmap(model)(images)
    for i, image in enumerate(images):
        expected = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for name, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][i], wanted)
        for got, wanted in zip(maps, model(image), strict=True):
            torch.testing.assert_close(got[i], wanted)


def test_a_directional_derivative_is_that_of_the_gradient():
    """Forward mode, as `torch.func.jvp` asks for it."""
    model, image = model_and_image()
    tangent = torch.randn_like(image)

    def loss(image):
        return model(image)[1].sin().sum()

    with sdpa_kernel(SDPBackend.MATH):
        _, found = torch.func.jvp(loss, (image,), (tangent,))
    torch.testing.assert_close(found, (torch.func.grad(loss)(image) * tangent).sum())

"""What docs/other_tools.md promises of tools that are not ours, each where it is installed."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distributed_jobs import spawn
from small_models import randomize
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

import mmlavit


@pytest.fixture
def model() -> nn.Module:
    return randomize(mmlavit.create_model('lavit_nano', num_classes=3))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 96, 96)


def train(model: nn.Module, images: Tensor) -> None:
    # a step by a clipped gradient
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(images).sin().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()


def train_sharded(model: nn.Module, images: Tensor) -> None:
    torch.distributed.init_process_group('gloo')
    expected, rank = copy.deepcopy(model), torch.distributed.get_rank()
    train(expected, images)
    mesh = torch.distributed.init_device_mesh('cpu', (2,))
    for part in [block for stage in model.backbone.stages for block in stage.blocks] + [model]:
        fully_shard(part, mesh=mesh)
    train(model, images.chunk(2)[rank])
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    torch.testing.assert_close(dict(state), dict(expected.state_dict()), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_step_of_a_sharded_model_is_that_of_one_process(model: nn.Module, images: Tensor) -> None:
    spawn(train_sharded, model, images)


def test_adapters_train_and_merge(model: nn.Module, images: Tensor) -> None:
    peft = pytest.importorskip('peft')
    linear, transforms = ['qkv', 'v', 'attn.proj', 'fc1', 'fc2'], ['attn.theta', 'attn.psi']
    config = peft.LoraConfig(r=2, target_modules=linear, target_parameters=transforms)
    before, adapted = model(images), peft.get_peft_model(model, config)
    for _ in range(2):  # the first step moves one factor of each adapter, the second both
        train(adapted, images)
    trained = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert [n for n, gradient in trained.items() if gradient is None or not gradient.any()] == []
    assert not torch.allclose(after := adapted(images), before, atol=1e-3)
    torch.testing.assert_close(adapted.merge_and_unload()(images), after, rtol=0, atol=1e-4)


def test_an_activation_map_of_the_last_norm(model: nn.Module, images: Tensor) -> None:
    """Behind average pooling, GradCAM is the map weighted by the class's row of the head."""
    cam = pytest.importorskip('pytorch_grad_cam')
    with cam.GradCAM(model=model, target_layers=[model.backbone.norm3]) as grad_cam:
        target = cam.utils.model_targets.ClassifierOutputTarget(1)
        found = torch.from_numpy(grad_cam(images[:1], [target]))
    with torch.no_grad():
        row = model.head.fc.weight[1, :, None, None]
        weighted = (model.forward_features(images[:1]) * row).sum(1, keepdim=True).relu()
        expected = F.interpolate(weighted, (96, 96), mode='bilinear')
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.999


def test_attributions_add_up(model: nn.Module, images: Tensor) -> None:
    attr, blurred = pytest.importorskip('captum.attr'), F.avg_pool2d(images, 31, 1, 15)
    found = attr.IntegratedGradients(model).attribute(images, blurred, target=1).sum((1, 2, 3))
    expected = model(images)[:, 1] - model(blurred)[:, 1]
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=1e-3)


@torch.no_grad()
def test_quantized_linear_layers(model: nn.Module, images: Tensor) -> None:
    quantization = pytest.importorskip('torchao.quantization')
    before = model.forward_features(images)
    names = {f'{n}.weight' for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert {n for n, p in model.named_parameters() if type(p) is not nn.Parameter} == names
    assert (model.forward_features(images) - before).norm() < 0.03 * before.norm()


@torch.no_grad()
def test_weights_on_a_disk(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    accelerate, expected = pytest.importorskip('accelerate'), model(images)
    accelerate.disk_offload(model, str(tmp_path), torch.device('cpu'))
    torch.testing.assert_close(model(images), expected)

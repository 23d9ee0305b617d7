"""Kernels in two processes, under DDP and FSDP: over gloo, in Triton's interpreter."""

import os

import pytest
import torch
from distributed_jobs import spawn
from small_models import ARCH, randomize
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mmlavit import ops
from mmlavit.models import LaViT, diagonality_loss, trace_layers


def make():
    """The same two stages and two images in every process; windows reach over the maps' borders."""
    model = randomize(LaViT(ARCH, window_size=3, out_indices=1)).train()
    return model, torch.randn(2, 3, 20, 16)


def shard(model):
    mesh = init_device_mesh('cpu', (2,))
    for stage in model.stages:
        fully_shard(stage, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {'DDP': DistributedDataParallel, 'FSDP': shard}


def gradients(model, wrapped, images):
    """Of a loss that is the mean of its images' losses."""
    layers = []
    trace_layers(model, layers.append, kinds=('LA',))
    loss = sum(x.sin().mean() for x in wrapped(images))
    (loss + sum(diagonality_loss(x.logits, x.windows) for x in layers)).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return {k: x.full_tensor() if hasattr(x, 'full_tensor') else x for k, x in found.items()}


def work(out):
    torch.distributed.init_process_group('gloo')
    rank = torch.distributed.get_rank()
    for name, wrap in WRAPPERS.items():
        model, images = make()
        with ops.use('triton'):
            found = gradients(model, wrap(model), images[rank : rank + 1])
        torch.save(found, out / f'{name} {rank}.pth')


@pytest.mark.slow
def test_gradients_are_those_of_the_definition(tmp_path, monkeypatch):
    """Each process has one image, and the mean gradient of both; the definition has the batch."""
    pytest.importorskip('triton')
    monkeypatch.setitem(os.environ, 'TRITON_INTERPRET', '1')
    spawn(work, tmp_path)
    model, images = make()
    wanted = gradients(model, model, images)
    for name in WRAPPERS:
        for rank in (0, 1):
            found = torch.load(tmp_path / f'{name} {rank}.pth')
            assert found.keys() == wanted.keys()
            for key, grad in found.items():
                assert (grad - wanted[key]).norm() < 1e-4 * wanted[key].norm(), (name, rank, key)

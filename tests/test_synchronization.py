"""A forward pass never waits for a GPU: nothing is read back, and nothing is copied to it."""

import pytest
import torch
from small_models import DEEPER_ARCH, SIZES, make_backbone
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmlavit import ops
from mmlavit.models import LaViT, diagonality_loss

# Of operators whose result, or its shape, the CPU learns from the GPU: `item`, `nonzero`, masks.
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Synchronizations(TorchDispatchMode):
    """Operators that wait for the GPU, and those on tensors elsewhere, copies among them."""

    def __init__(self):
        super().__init__()
        self.called, self.found = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # fake tensors have no values: what would wait for one raises an error here
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        self.called.append(function.name())
        if WAITING & set(function.tags) or any(x.device.type != 'cuda' for x in tensors):
            self.found.append(function.name())
        return result


def forward(model, images, training):
    """Maps, or the loss of a training step with that on the diagonality of attention."""
    model.train(training)
    if not training:
        return model(images)
    maps, layers = model.forward_trace(images)
    values = [diagonality_loss(x.logits, x.windows) for x in layers if x.kind == 'LA']
    return sum(x.float().square().mean() for x in maps) + torch.stack(values).mean()


def count(function, backend='auto', training=False):
    """Call a function with a small backbone on a GPU that need not exist, in bfloat16."""
    model = LaViT(DEEPER_ARCH, drop_path_rate=0.1)
    torch.set_autocast_dtype('cuda', torch.bfloat16)
    with FakeTensorMode(), ops.use(backend), torch.set_grad_enabled(training):
        model._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device='cuda'))
        # `torch.autocast` itself does nothing where there is no GPU
        torch.set_autocast_enabled('cuda', True)
        try:
            with Synchronizations() as counted:
                function(model)
        finally:
            torch.set_autocast_enabled('cuda', False)
            torch.clear_autocast_cache()
    return counted


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('backend', ['triton', 'definition'])
@pytest.mark.parametrize('size', SIZES[1:], ids=str)
def test_a_forward_pass_waits_for_nothing(size, backend, training):
    pytest.importorskip('triton')

    def run(model):
        forward(model, torch.empty(size, device='cuda'), training)

    counted = count(run, backend, training)
    assert not counted.found
    assert ('mmlavit::less_attention' in counted.called) == (backend == 'triton')


@pytest.mark.parametrize(
    'wait',
    [
        lambda x: torch.empty(2) + x.to('cpu'),
        lambda x: torch.tensor([1.0, 2.0], device='cuda') * x,
        lambda x: torch.empty(2).to('cuda') * x,
    ],
)
def test_what_is_copied_is_found(wait):
    assert count(lambda model: wait(torch.empty(2, device='cuda'))).found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('backend', ['auto', 'definition'])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_torch_sees_no_synchronization(size, backend, training):
    model = make_backbone(drop_path_rate=0.1).cuda()
    images = torch.randn(size, device='cuda')
    with (
        ops.use(backend),
        torch.autocast('cuda', torch.bfloat16),
        torch.set_grad_enabled(training),
    ):
        forward(model, images, training)  # compiles the kernels
        torch.cuda.set_sync_debug_mode('error')
        try:
            forward(model, images, training)
        finally:
            torch.cuda.set_sync_debug_mode('default')

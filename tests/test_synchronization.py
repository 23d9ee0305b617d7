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

KERNELS = {'add_norm', 'attention_residual', 'conv_gelu', 'less_attention', 'vanilla_attention'}
# Of operators whose result, or its shape, the CPU learns from the GPU: `item`, `nonzero`, masks.
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Operators(TorchDispatchMode):
    """Names of all that are called, and of those that wait for the GPU or see tensors elsewhere."""

    def __init__(self):
        super().__init__()
        self.called, self.waiting = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # fake tensors have no values: what would wait for one raises an error here
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        self.called.append(function.name())
        if WAITING & set(function.tags) or any(x.device.type != 'cuda' for x in tensors):
            self.waiting.append(function.name())
        return result


def forward(model, images, training):
    """Maps, or the loss of a training step with that on the diagonality of attention."""
    model.train(training)
    if not training:
        return model(images)
    maps, layers = model.forward_trace(images)
    values = [diagonality_loss(x.logits, x.windows) for x in layers if x.kind == 'LA']
    return sum(x.float().square().mean() for x in maps) + torch.stack(values).mean()


def operators_of(function, backend='auto', training=False):
    """Call a function with a small backbone on a GPU that need not exist, in bfloat16."""
    model = LaViT(DEEPER_ARCH, drop_path_rate=0.1)
    torch.set_autocast_dtype('cuda', torch.bfloat16)
    with FakeTensorMode(), ops.use(backend), torch.set_grad_enabled(training):
        model._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device='cuda'))
        # `torch.autocast` itself does nothing where there is no GPU
        torch.set_autocast_enabled('cuda', True)
        try:
            with Operators() as operators:
                function(model)
        finally:
            torch.set_autocast_enabled('cuda', False)
            torch.clear_autocast_cache()
    return operators


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('backend', ['auto', 'triton', 'definition'])
def test_a_forward_pass_waits_for_nothing(backend, training):
    pytest.importorskip('triton')

    def run(model):
        forward(model, torch.empty(SIZES[1], device='cuda'), training)

    operators = operators_of(run, backend, training)
    assert not operators.waiting
    found = {name.removeprefix('mmlavit::') for name in operators.called if 'mmlavit' in name}
    kernels = KERNELS | {'diagonality'} if training else KERNELS
    assert found == (set() if backend == 'definition' else kernels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('backend', ['auto', 'definition'])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_torch_sees_no_synchronization(size, backend, training):
    model = make_backbone(drop_path_rate=0.1).cuda()
    images = torch.randn(size, device='cuda')
    precision = torch.autocast('cuda', torch.bfloat16)
    with ops.use(backend), precision, torch.set_grad_enabled(training):
        forward(model, images, training)  # compiles the kernels
        torch.cuda.set_sync_debug_mode('error')
        try:
            forward(model, images, training)
        finally:
            torch.cuda.set_sync_debug_mode('default')

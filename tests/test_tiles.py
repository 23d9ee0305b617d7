"""What runs in tiles on a CPU is the same function, in value and gradient."""

import copy

import pytest
import torch

from mmlavit.models import LaViT, LessAttention
from mmlavit.models.layers import ConvFFN, block, ffn, stage, tiles, window_mask
from mmlavit.models.layers.attention import WindowedAttention
from mmlavit.models.layers.regions import regions

ARCH = {'channels': (8, 8, 16, 16), 'depths': (2, 3, 3, 2), 'va_layers': (1, 1, 2, 1),
        'head_width': 8}  # fmt: skip


@pytest.fixture(params=[1, 2**11, 2**14, 2**30], ids=['row', '2KiB', '16KiB', 'whole'])
def tile_bytes(request, monkeypatch):
    """From a tile a row to all images in one."""
    monkeypatch.setattr(tiles, 'TILE_BYTES', request.param)
    return request.param


def untiled(monkeypatch):
    """From here on the model runs as on any other device."""
    for module in (stage, ffn, tiles):
        monkeypatch.setattr(module, 'is_streamed', lambda x: False)


def model(window=3, **options):
    torch.manual_seed(0)
    made = LaViT(ARCH, window_size=window, **options).double()
    for name, param in made.named_parameters():
        if name.endswith(('theta', 'psi')):
            torch.nn.init.normal_(param, std=0.1)
    return made


def biased(lavit):
    """A bias of 0, the start value, hides that it is left out."""
    for name, param in lavit.named_parameters():
        if name.endswith('bias'):
            torch.nn.init.normal_(param, std=0.1)
    return lavit


def gradients(module, x):
    module.zero_grad()
    x = x.clone().requires_grad_()
    outs = module(x)
    outs = outs if isinstance(outs, tuple) else (outs,)
    sum(out.sin().sum() for out in outs).backward()
    return [x.grad, *(p.grad for p in module.parameters())]


SIZES = [(1, 1), (32, 32), (50, 90), (97, 33)]


@pytest.mark.parametrize('size', SIZES)
def test_prediction(size, tile_bytes, monkeypatch):
    lavit, images = biased(model()).eval(), torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        tiled = lavit(images)
        untiled(monkeypatch)
        for got, expected in zip(tiled, lavit(images), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('size', SIZES[1:])
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients(size, with_cp, tile_bytes, monkeypatch):
    lavit = biased(model(with_cp=with_cp))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    tiled = gradients(lavit, images)
    untiled(monkeypatch)
    for got, expected in zip(tiled, gradients(lavit, images), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('height', [1, 2, 3, 7])
def test_feed_forward_at_every_height(height, tile_bytes, monkeypatch):
    """Tiles meet at rows that the convolution straddles."""
    layer = ConvFFN(4, 16).double()
    x = torch.randn(2, height, 5, 4, dtype=torch.float64)
    tiled, value = gradients(layer, x), layer(x)
    untiled(monkeypatch)
    torch.testing.assert_close(value, layer(x), rtol=1e-10, atol=1e-10)
    for got, expected in zip(tiled, gradients(layer, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_autocast(monkeypatch):
    lavit, images = model().float(), torch.randn(2, 3, 50, 90)
    with torch.autocast('cpu', torch.bfloat16):
        tiled = gradients(lavit, images)
        untiled(monkeypatch)
        plain = gradients(lavit, images)
    for got, expected in zip(tiled, plain, strict=True):
        assert got.dtype == expected.dtype == torch.float32
        error = (got - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 0.05


def test_a_model_in_training_without_gradients_still_drops_paths():
    """Tiles are for evaluation: they skip stochastic depth."""
    lavit, images = model(drop_path_rate=0.9), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        one, other = lavit(images)[-1], lavit(images)[-1]
    assert not torch.equal(one, other)


@pytest.fixture
def streamed(monkeypatch):
    """Names of the tiled parts that have run, in order."""
    seen = []

    def spy(owner, name, label):
        function = getattr(owner, name)

        def call(*args):
            seen.append(label)
            return function(*args)

        monkeypatch.setattr(owner, name, call)

    spy(block, 'attend', 'attend')
    spy(block, 'feed_forward', 'feed_forward')
    spy(ffn.StreamedFFN, 'apply', 'ffn')
    return seen


def test_a_model_as_it_is_runs_in_tiles(streamed):
    """Ten blocks."""
    lavit, images = model(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    lavit(images)
    assert streamed == ['ffn'] * 10
    streamed.clear()
    with torch.no_grad():
        lavit.eval()(images)
    assert streamed == ['attend', 'feed_forward'] * 10


class Adapter(torch.nn.Module):
    """A layer in the place of a linear one, without its weights, as adapters are."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


@pytest.mark.parametrize(
    ('owner', 'layer'),
    [(ConvFFN, 'fc1'), (ConvFFN, 'dwconv'), (ConvFFN, 'fc2'), (WindowedAttention, 'proj')],
)
@pytest.mark.parametrize('training', [False, True])
def test_adapters_are_called(owner, layer, training):
    lavit, images = model().train(training), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    found = copy.deepcopy(lavit)
    for part, replaced in zip(list(lavit.modules()), list(found.modules()), strict=True):
        if isinstance(part, owner):
            for parameter in getattr(part, layer).parameters():
                parameter.data *= 2
            setattr(replaced, layer, Adapter(getattr(replaced, layer)))
    with torch.no_grad():
        for got, expected in zip(found(images), lavit(images), strict=True):
            torch.testing.assert_close(got, expected)


class DoubledAttention(LessAttention):
    """An attention with a forward pass of its own."""

    def forward(self, *args):
        out, logits = super().forward(*args)
        return 2 * out, logits


def test_an_attention_with_its_own_forward_pass_is_called():
    lavit, images = model().eval(), torch.randn(1, 3, 50, 90, dtype=torch.float64)
    found = copy.deepcopy(lavit)
    for part, replaced in zip(list(lavit.modules()), list(found.modules()), strict=True):
        if isinstance(part, LessAttention):
            part.proj.weight.data *= 2
            replaced.__class__ = DoubledAttention
    with torch.no_grad():
        for got, expected in zip(found(images), lavit(images), strict=True):
            torch.testing.assert_close(got, expected)


def test_dynamic_quantization():
    """Its layers have methods where others have weights."""
    lavit, images = model().float().eval(), torch.randn(1, 3, 64, 64)
    with pytest.warns(DeprecationWarning):
        small = torch.ao.quantization.quantize_dynamic(lavit, {torch.nn.Linear})
    with torch.no_grad():
        for got, expected in zip(small(images), lavit(images), strict=True):
            assert (got - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize(
    'name',
    ['norm1', 'attn', 'attn.qkv', 'attn.proj', 'norm2', 'ffn', 'ffn.fc1', 'ffn.dwconv'],
)
def test_hooks_see_whole_maps_once(name):
    lavit, images = model().eval(), torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = lavit(images)
    seen = []
    part = lavit.get_submodule(f'stages.1.blocks.0.{name}')
    part.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    with torch.no_grad():
        found = lavit(images)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert len(seen) == 1 and len(seen[0]) == 4 and seen[0][0] == 3


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_logits_are_written_where_asked(dtype):
    """In half precision they are not: there a product may overflow, and is kept finite."""
    layer = model().to(dtype).stages[0].blocks[1].attn
    x, places = torch.randn(2, 6, 7, 8, dtype=dtype), regions((6, 7), 3)
    shapes = [(2 * 2 * 2, 1, 9, 9), (2 * 2 * 1, 1, 3, 3)]
    scores = [torch.randn(shape, dtype=dtype) for shape in shapes]
    out = [torch.empty(shape, dtype=dtype) for shape in shapes]
    with torch.no_grad():
        expected = layer.mix(x, scores, places)
        mixed, logits = layer.mix(x, scores, places, out)
    torch.testing.assert_close((mixed, logits), expected, rtol=0, atol=0)
    assert all((a is b) is (dtype is torch.float64) for a, b in zip(logits, out, strict=True))


def test_second_derivatives():
    """A gradient penalty, against finite differences of the gradient."""
    torch.manual_seed(0)
    layer = LessAttention(4, 2, 2).double()
    torch.nn.init.normal_(layer.theta, std=0.1)
    torch.nn.init.normal_(layer.psi, std=0.1)
    network = ConvFFN(4, 8).double()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(4, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    mask = window_mask((3, 4), 2, x.device)
    assert torch.autograd.gradgradcheck(lambda a, b: layer(a, b, mask), (x, logits))
    assert torch.autograd.gradgradcheck(network, (x,))


def test_transforms_of_torch_func():
    """Gradients of single images by vmap are those of a loop."""
    lavit = model(out_indices=(0,)).eval()
    images = torch.randn(3, 1, 3, 13, 17, dtype=torch.float64)
    parameters = dict(lavit.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(lavit, parameters, (image,))[0].sin().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
    for i, image in enumerate(images):
        expected = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for name, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][i], wanted)


def test_frozen_layers_get_no_gradient():
    """And the others get what they got before."""
    network = ConvFFN(4, 16).double()
    x = torch.randn(2, 5, 5, 4, dtype=torch.float64)
    expected = dict(
        zip(['x', *dict(network.named_parameters())], gradients(network, x), strict=True)
    )
    for frozen in ('fc1', 'dwconv', 'fc2'):
        changed = copy.deepcopy(network)
        getattr(changed, frozen).requires_grad_(False)
        changed.zero_grad()
        changed(x).sin().sum().backward()
        for name, parameter in changed.named_parameters():
            if name.startswith(frozen):
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, expected[name])


def test_tiles_grow_with_threads_up_to_a_limit(monkeypatch):
    maps = torch.empty(1, 2**14, 2**4, 2**6)  # 4 KiB a row, 64 MiB in all
    heights = []
    for threads in (1, 2, 1000):
        monkeypatch.setattr(torch, 'get_num_threads', lambda threads=threads: threads)
        heights.append(next(tiles.tiles(maps, 2**6, 1))[1].stop)
    assert heights == [2**10, 2**11, 2**12]

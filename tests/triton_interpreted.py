"""Kernels in Triton's interpreter; tests/test_triton.py runs this in a process of its own.

As in ``TRITON_INTERPRET=1 python -m pytest tests/triton_interpreted.py``.
"""

import pytest
import torch
import triton_cases as cases
from torch._dynamo.testing import CompileCounterWithBackend

from mmlavit import ops
from mmlavit.models import LaViT, diagonality_loss
from mmlavit.ops import Windows

# Side of a window, heads, width of a head, batch, height and columns of the map. The interpreter
# multiplies the bit patterns of bfloat16: that type is left to a GPU.
GEOMETRIES = [
    (3, 2, 16, 2, 7, 5),
    (4, 3, 16, 1, 8, 4),
    (5, 1, 32, 1, 5, 6),
    (6, 1, 16, 1, 6, 6),
    (7, 2, 32, 1, 9, 7),
    (8, 1, 64, 1, 9, 8),
]
# each geometry in float32, and one whose windows reach over the border in float16
NARROW, WIDE = torch.float16, torch.float32
TYPED = [*((geometry, WIDE) for geometry in GEOMETRIES), (GEOMETRIES[4], NARROW)]
geometries = pytest.mark.parametrize(('geometry', 'dtype'), TYPED, ids=str)


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)


@geometries
def test_less_attention(geometry, dtype):
    cases.check(*cases.less_attention(*geometry), dtype)


@pytest.mark.parametrize(('with_residual', 'keep_logits'), [(False, False), (True, True)])
@geometries
def test_vanilla_attention(geometry, dtype, with_residual, keep_logits):
    cases.check(*cases.vanilla_attention(*geometry, with_residual, keep_logits), dtype)


@geometries
def test_diagonality(geometry, dtype):
    cases.check(*cases.diagonality(*geometry), dtype)


def test_diagonality_without_windows():
    cases.check(ops.diagonality, [cases.random(2, 1, 5, 5)], [], (None, 'hinge'), torch.float32)


def test_diagonality_of_even_attention():
    """Where no logit differs, the gradient is that of the definition as well."""
    logits = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    logits[:, 1, 3, 4] = 1
    cases.check(ops.diagonality, [logits], [], (None, 'hinge'), torch.float32)


@pytest.mark.parametrize(
    ('formula', 'shape', 'dtype'),
    [
        ('attention_residual', (3, 1, 16, 2, 7, 5), WIDE),
        ('attention_residual', (4, 2, 16, 1, 8, 4, 3), WIDE),  # the next windows are smaller
        ('attention_residual', (3, 1, 16, 1, 8, 11, 4), WIDE),
        ('attention_residual', (7, 2, 16, 1, 9, 8), NARROW),
        ('attention_residual', (8, 1, 16, 1, 9, 8), WIDE),
        ('conv_gelu', (2, 9, 10, 48), WIDE),
        ('conv_gelu', (1, 3, 5, 96), NARROW),
        ('conv_gelu', (1, 15, 8, 64), WIDE),
        ('conv_gelu', (1, 1, 1, 32, False), WIDE),
        ('add_norm', (2, 9, 7, 24), WIDE),
        ('add_norm', (1, 5, 8, 64, False), WIDE),
        ('add_norm', (1, 3, 7, 320), NARROW),
    ],
    ids=str,
)
def test_other_formulas(formula, shape, dtype):
    cases.check(*getattr(cases, formula)(*shape), dtype)


@pytest.mark.parametrize(('with_branch', 'compiled'), [(True, True), (False, False)])
def test_add_norm_in_mixed_precision(with_branch, compiled):
    """A float32 map stays one, and what a linear layer reads next is as narrow as autocast asks."""
    formula, (x, branch), parameters, others = cases.add_norm(1, 5, 7, 48, with_branch)
    x, weight, bias = (x.float().requires_grad_() for x in (x, *parameters))
    branch = branch.half().requires_grad_() if with_branch else None
    leaves = [leaf for leaf in (x, branch, weight, bias) if leaf is not None]
    if compiled:
        torch._dynamo.reset()
        formula = torch.compile(formula, backend='aot_eager', fullgraph=True)

    def values_and_gradients(backend):
        with ops.use(backend), torch.autocast('cpu', torch.float16, backend == 'triton'):
            total, normed = formula(x, branch, weight, bias, *others)
        loss = cases.waves(x.shape, 1) * total + cases.waves(x.shape, 2) * normed.double()
        return [total, normed, *torch.autograd.grad(loss.sum(), leaves)]

    found, wanted = map(values_and_gradients, ('triton', 'definition'))
    assert [x.dtype for x in found] == [torch.float32, torch.float16, *(x.dtype for x in leaves)]
    for x, y in zip(found, wanted, strict=True):
        assert cases.relative_error(x, y) < cases.TOLERANCE[torch.float16]
    assert cases.relative_error(found[0], wanted[0]) == 0


@pytest.mark.parametrize('read', [0, 1])
def test_one_result_of_add_norm_may_go_unread(read):
    formula, (x, branch, *parameters), others = _float32(*cases.add_norm(1, 3, 5, 24))

    def gradients_by_one(backend):
        with ops.use(backend):
            result = formula(x, branch, *parameters, *others)[read]
        return torch.autograd.grad(result.sin().sum(), (x, branch))

    found, wanted = map(gradients_by_one, ('triton', 'definition'))
    for a, b in zip(found, wanted, strict=True):
        assert cases.relative_error(a, b) < cases.TOLERANCE[torch.float32]


SMALL = (3, 2, 16, 1, 4, 3)
CASES = {
    'add_norm': lambda: cases.add_norm(1, 3, 5, 24),
    'add_norm without a branch': lambda: cases.add_norm(1, 3, 5, 24, False),
    'attention_residual': lambda: cases.attention_residual(*SMALL),
    'conv_gelu': lambda: cases.conv_gelu(1, 4, 3, 32),
    'conv_gelu without a bias': lambda: cases.conv_gelu(1, 4, 3, 32, False),
    'diagonality': lambda: cases.diagonality(*SMALL),
    'less_attention': lambda: cases.less_attention(*SMALL),
    'vanilla_attention': lambda: cases.vanilla_attention(*SMALL),
    'vanilla_attention with a residual': lambda: cases.vanilla_attention(*SMALL, True),
    'vanilla_attention without logits': lambda: cases.vanilla_attention(*SMALL, True, False),
}


@pytest.fixture(params=CASES)
def case(request):
    """A formula, its tensors in float32 with gradients, and what is no tensor."""
    formula, activations, parameters, others = CASES[request.param]()
    tensors = [x if x is None else x.float().requires_grad_() for x in (*activations, *parameters)]
    return formula, tensors, others


def test_operators_keep_torch_s_rules(case):
    formula, tensors, others = case
    operator = getattr(torch.ops.mmlavit, formula.__name__).default
    with ops.use('triton'):
        formula(*tensors, *others)  # registers it
    others = [list(x) if isinstance(x, Windows) else x for x in others if not isinstance(x, str)]
    torch.library.opcheck(operator, (*tensors, *others), atol=1e-4, rtol=1e-4)


def test_second_derivatives(case):
    formula, tensors, others = case
    wanted = [x for x in tensors if x is not None]

    def second(backend):
        with ops.use(backend):
            results = formula(*tensors, *others)
        results = [results] if isinstance(results, torch.Tensor) else results
        total = sum(x.sin().sum() for x in results if x is not None)
        first = torch.autograd.grad(total, wanted, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), wanted)

    for x, y in zip(second('triton'), second('definition'), strict=True):
        assert cases.relative_error(x, y) < 1e-4


def test_second_derivatives_where_one_argument_makes_another():
    formula, (v, logits, theta, psi), others = _float32(*cases.less_attention(*SMALL))

    def second(backend):
        with ops.use(backend):
            out, _ = formula(v, logits, theta, 2 * theta, *others)
        (first,) = torch.autograd.grad(out.sin().sum(), theta, create_graph=True)
        return torch.autograd.grad(first.square().sum(), theta)[0]

    assert cases.relative_error(second('triton'), second('definition')) < 1e-4


def _float32(formula, activations, parameters, others):
    return formula, [x.float().requires_grad_() for x in (*activations, *parameters)], others


# All that a backbone has: a stage with one layer, less attention, two heads, maps with a border
ARCH = dict(channels=(16, 16, 16, 32), depths=(2, 1, 1, 3), va_layers=(1, 1, 1, 2), head_width=16)
SIZE = (36, 44)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    model = LaViT(ARCH, window_size=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def train_step(model, images, scale=1):
    """Maps, then gradients of a loss on them and on the logits; float16 wants the loss scaled."""
    maps, layers = model.forward_trace(images)
    loss = sum(x.float().square().mean() for x in maps)
    loss += sum(diagonality_loss(x.logits, x.windows) for x in layers if x.kind == 'LA')
    gradients = torch.autograd.grad(loss * scale, list(model.parameters()))
    return [*maps, *(x / scale for x in gradients)]


@pytest.mark.parametrize(
    ('with_cp', 'mixed', 'tolerance'), [(True, False, 1e-4), (False, True, 0.02)]
)
def test_backbone_with_checkpoints_or_in_mixed_precision(backbone, with_cp, mixed, tolerance):
    images = torch.randn(1, 3, *SIZE)
    wanted = train_step(backbone, images)
    for stage in backbone.stages:
        stage.with_cp = with_cp
    with ops.use('triton'), torch.autocast('cpu', torch.float16, mixed):
        found = train_step(backbone, images, scale=1024)
        _, layers = backbone.forward_trace(images)
    assert {x.logits.dtype for x in layers} == {torch.float16 if mixed else torch.float32}
    for x, y in zip(found, wanted, strict=True):
        assert cases.relative_error(x, y) < tolerance


def test_one_compiled_graph_serves_every_size():
    transform, kernel = torch.randn(9, 9) / 9, torch.randn(1, 4, 4)

    def stage(x):
        windows = Windows(3, *x.shape[:3])
        after = Windows(3, x.shape[0], (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2)
        qkv = ops.conv_gelu(x, torch.ones(48, 1, 3, 3), None)
        out, logits = ops.vanilla_attention(qkv, None, windows, 1, True)
        out, logits = ops.less_attention(out, logits, transform, transform, windows)
        loss = sum(ops.diagonality(logits, windows, 'hinge'))
        _, out = ops.add_norm(out, out, torch.ones(16), torch.zeros(16), 1e-5)
        return out, ops.attention_residual(logits, kernel, windows, after), loss

    graphs = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(stage, backend=graphs, fullgraph=True, dynamic=True)
    with ops.use('triton'):
        for height, width in ((7, 5), (10, 13)):
            x = torch.randn(1, height, width, 48)
            torch.testing.assert_close(compiled(x), stage(x))
    assert graphs.frame_count == 1


EXAMPLE = [x.float() for x in (*cases.less_attention(*SMALL)[1], *cases.less_attention(*SMALL)[2])]


@pytest.mark.parametrize(
    ('transform', 'reason'),
    [
        (lambda f: torch.export.export(f, tuple(EXAMPLE)), 'an exported model'),
        (lambda f: torch.jit.trace(f, EXAMPLE), 'an exported model'),
        (lambda f: torch.func.grad(lambda *x: f(*x)[0].sum())(*EXAMPLE), 'torch.func'),
    ],
    ids=['export', 'trace', 'func'],
)
def test_graphs_of_torch_alone_take_no_kernel(transform, reason):
    class Formula(torch.nn.Module):
        def forward(self, *tensors):
            return ops.less_attention(*tensors, Windows(3, 1, 4, 3))

    transform(Formula())
    with ops.use('triton'), pytest.raises(RuntimeError, match=reason):
        transform(Formula())


@pytest.mark.parametrize(
    ('case', 'reason'),
    [
        (cases.less_attention(9, 1, 16, 1, 9, 9), 'windows of up to 64 tokens, not of 81'),
        (cases.attention_residual(9, 1, 16, 1, 9, 9), 'windows of up to 64 tokens, not of 81'),
        (cases.vanilla_attention(3, 2, 24, 1, 3, 3), 'heads of 16, 32, 64 or 128 channels, not'),
        (cases.vanilla_attention(3, 2, 16, 0, 3, 3), 'there is nothing to compute'),
        (cases.diagonality(3, 1, 16, 1, 3, 3, 'linear'), 'the form hinge, not linear'),
        (cases.add_norm(1, 2, 2, 1025), 'tokens of up to 1024 channels, not of 1025'),
    ],
)
def test_arguments_without_a_kernel(case, reason):
    formula, activations, parameters, others = case
    tensors = [x if x is None else x.float() for x in (*activations, *parameters)]
    with ops.use('triton'):
        assert reason in ops.explain(formula.__name__, *tensors, *others).reason
        with pytest.raises(RuntimeError, match=reason):
            formula(*tensors, *others)


def test_float64_has_no_kernel(case):
    formula, tensors, others = case
    tensors = [x if x is None else x.double() for x in tensors]
    with ops.use('triton'), pytest.raises(RuntimeError, match='not in torch.float64'):
        formula(*tensors, *others)


def test_shapes_that_do_not_fit_reach_no_kernel(case):
    """A kernel would read memory that is not its own."""
    formula, tensors, others = case
    tensors = [x if x is None else x[:-1] for x in tensors]
    with ops.use('triton'):
        choice = ops.explain(formula.__name__, *tensors, *others)
    assert choice.backend == 'definition'


def test_float16_stays_finite():
    n = 16
    logits = torch.full((1, 1, n, n), 6e4, dtype=torch.float16)
    v = torch.randn(1, 4, 4, 16, dtype=torch.float16)
    transform = torch.eye(n)
    with ops.use('triton'):
        out, logits = ops.less_attention(v, logits, transform, transform, Windows(4, 1, 4, 4))
    assert out.isfinite().all()
    assert (logits == torch.finfo(torch.float16).max).all()

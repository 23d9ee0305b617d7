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

NARROW, WIDE = torch.float16, torch.float32
# Side of a window, heads, width of a head, batch, height and columns of the map: each in float32,
# and one whose windows reach over the border in float16. The interpreter multiplies the bit
# patterns of bfloat16: that type is left to a GPU.
BORDER = (7, 2, 32, 1, 9, 7)
GEOMETRIES = [
    ((3, 2, 16, 2, 7, 5), WIDE),
    ((4, 3, 16, 1, 8, 4), WIDE),
    ((5, 1, 32, 1, 5, 6), WIDE),
    ((8, 1, 64, 1, 9, 8), WIDE),
    (BORDER, WIDE),
    (BORDER, NARROW),
]
ATTENTION = {
    'less attention': cases.less_attention,
    'vanilla attention with a residual': lambda *geometry: cases.vanilla_attention(*geometry, True),
    'fused vanilla attention': lambda *geometry: cases.vanilla_attention(*geometry, False, False),
    'diagonality': cases.diagonality,
}


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)


@pytest.mark.parametrize(('geometry', 'dtype'), GEOMETRIES, ids=str)
@pytest.mark.parametrize('formula', ATTENTION)
def test_attention(formula, geometry, dtype):
    cases.check(*ATTENTION[formula](*geometry), dtype)


@pytest.mark.parametrize(
    ('formula', 'shape', 'dtype'),
    [
        ('attention_residual', (3, 1, 16, 2, 7, 5), WIDE),
        ('attention_residual', (4, 2, 16, 1, 8, 4, 3), WIDE),  # the next windows are smaller
        ('attention_residual', (3, 1, 16, 1, 8, 11, 4), WIDE),
        ('attention_residual', (7, 2, 16, 1, 9, 8), NARROW),
        ('attention_residual', (8, 1, 16, 1, 9, 8), WIDE),
        ('conv_gelu', (2, 5, 6, 48), WIDE),
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


EVEN = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
EVEN[:, 1, 3, 4] = 1


@pytest.mark.parametrize('logits', [torch.randn(2, 1, 5, 5).double(), EVEN], ids=['any', 'even'])
def test_diagonality_without_windows(logits):
    """Also where no logit differs from another, and the norm has no gradient of its own."""
    cases.check(ops.diagonality, [logits], [], (None, 'hinge'), WIDE)


@pytest.mark.parametrize(('with_branch', 'compiled'), [(True, True), (False, False)])
def test_add_norm_in_mixed_precision(with_branch, compiled):
    """A float32 map stays one, and what a linear layer reads next is as narrow as autocast asks."""
    formula, tensors, others = cases.typed(cases.add_norm(1, 5, 7, 48, with_branch))
    if with_branch:
        tensors[1] = tensors[1].detach().half().requires_grad_()
    leaves = cases.tensors_in(tensors)
    if compiled:
        torch._dynamo.reset()
        formula = torch.compile(formula, backend='aot_eager', fullgraph=True)

    def values_and_gradients(backend):
        with ops.use(backend), torch.autocast('cpu', NARROW, backend == 'triton'):
            total, normed = formula(*tensors, *others)
        loss = cases.waves(total.shape, 1) * total + cases.waves(total.shape, 2) * normed.double()
        return [total, normed, *torch.autograd.grad(loss.sum(), leaves)]

    found, wanted = map(values_and_gradients, ('triton', 'definition'))
    assert [x.dtype for x in found] == [WIDE, NARROW, *(x.dtype for x in leaves)]
    cases.assert_near(found, wanted, cases.TOLERANCE[NARROW])
    cases.assert_near(found[:1], wanted[:1], 0)


@pytest.mark.parametrize('read', [0, 1])
def test_one_result_of_add_norm_may_go_unread(read):
    formula, tensors, others = cases.typed(cases.add_norm(1, 3, 5, 24))

    def gradients_by_one(backend):
        with ops.use(backend):
            result = formula(*tensors, *others)[read]
        return torch.autograd.grad(result.sin().sum(), tensors[:2])

    cases.assert_near(*map(gradients_by_one, ('triton', 'definition')), cases.TOLERANCE[WIDE])


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
    'vanilla_attention without logits': lambda: cases.vanilla_attention(*SMALL, True, False),
}


@pytest.fixture(params=CASES)
def case(request):
    """A formula, its tensors in float32 with gradients, and what is no tensor."""
    return cases.typed(CASES[request.param]())


def test_operators_keep_torch_s_rules(case):
    formula, tensors, others = case
    operator = getattr(torch.ops.mmlavit, formula.__name__).default
    with ops.use('triton'):
        formula(*tensors, *others)  # registers it
    others = [list(x) if isinstance(x, Windows) else x for x in others if not isinstance(x, str)]
    torch.library.opcheck(operator, (*tensors, *others), atol=1e-4, rtol=1e-4)


def test_second_derivatives(case):
    formula, tensors, others = case
    wanted = cases.tensors_in(tensors)

    def second(backend):
        with ops.use(backend):
            total = sum(x.sin().sum() for x in cases.tensors_in(formula(*tensors, *others)))
        first = torch.autograd.grad(total, wanted, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), wanted)

    cases.assert_near(second('triton'), second('definition'), 1e-4)


def test_second_derivatives_where_one_argument_makes_another():
    formula, (v, logits, theta, _), others = cases.typed(cases.less_attention(*SMALL))

    def second(backend):
        with ops.use(backend):
            out, _ = formula(v, logits, theta, 2 * theta, *others)
        (first,) = torch.autograd.grad(out.sin().sum(), theta, create_graph=True)
        return torch.autograd.grad(first.square().sum(), theta)

    cases.assert_near(second('triton'), second('definition'), 1e-4)


# All that a backbone has: a stage with one layer, less attention, two heads, maps with a border
ARCH = dict(channels=(16, 16, 16, 32), depths=(2, 1, 1, 3), va_layers=(1, 1, 1, 2), head_width=16)


def train_step(model, images, scale=1):
    """Maps, types of the logits, and gradients of a loss on both; float16 wants the loss scaled."""
    maps, layers = model.forward_trace(images)
    loss = sum(x.float().square().mean() for x in maps)
    loss += sum(diagonality_loss(x.logits, x.windows) for x in layers if x.kind == 'LA')
    gradients = torch.autograd.grad(loss * scale, list(model.parameters()))
    return [*maps, *(x / scale for x in gradients)], {x.logits.dtype for x in layers}


@pytest.mark.parametrize(('mixed', 'tolerance'), [(False, 1e-4), (True, 0.02)])
def test_backbone_with_checkpoints_or_in_mixed_precision(mixed, tolerance):
    model, images = LaViT(ARCH, window_size=3), torch.randn(1, 3, 36, 44)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    wanted, _ = train_step(model, images)
    for stage in model.stages:
        stage.with_cp = not mixed
    with ops.use('triton'), torch.autocast('cpu', NARROW, mixed):
        found, types = train_step(model, images, scale=1024)
    assert types == {NARROW if mixed else WIDE}
    cases.assert_near(found, wanted, tolerance)


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


EXAMPLE = [x.detach() for x in cases.typed(cases.less_attention(*SMALL))[1]]


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
    ('case', 'dtype', 'reason'),
    [
        (cases.less_attention(9, 1, 16, 1, 9, 9), WIDE, 'windows of up to 64 tokens, not of 81'),
        (cases.attention_residual(9, 1, 16, 1, 9, 9), WIDE, 'up to 64 tokens, not of 81'),
        (cases.vanilla_attention(3, 2, 24, 1, 3, 3), WIDE, 'of 16, 32, 64 or 128 channels, not'),
        (cases.vanilla_attention(3, 2, 16, 0, 3, 3), WIDE, 'there is nothing to compute'),
        (cases.diagonality(3, 1, 16, 1, 3, 3, 'linear'), WIDE, 'the form hinge, not linear'),
        (cases.add_norm(1, 2, 2, 1025), WIDE, 'tokens of up to 1024 channels, not of 1025'),
        *((case(), torch.float64, 'not in torch.float64') for case in CASES.values()),
    ],
)
def test_arguments_without_a_kernel(case, dtype, reason):
    formula, tensors, others = cases.typed(case, dtype)
    with ops.use('triton'):
        assert reason in ops.explain(formula.__name__, *tensors, *others).reason
        with pytest.raises(RuntimeError, match=reason):
            formula(*tensors, *others)


def test_shapes_that_do_not_fit_reach_no_kernel(case):
    """A kernel would read memory that is not its own."""
    formula, tensors, others = case
    tensors = [x if x is None else x[:-1] for x in tensors]
    with ops.use('triton'):
        choice = ops.explain(formula.__name__, *tensors, *others)
    assert choice.backend == 'definition'


def test_float16_stays_finite():
    logits, v = torch.full((1, 1, 16, 16), 6e4).half(), torch.randn(1, 4, 4, 16).half()
    with ops.use('triton'):
        out, logits = ops.less_attention(
            v, logits, torch.eye(16), torch.eye(16), Windows(4, 1, 4, 4)
        )
    assert out.isfinite().all()
    assert (logits == torch.finfo(NARROW).max).all()

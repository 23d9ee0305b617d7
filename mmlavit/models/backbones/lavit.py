"""LaViT: the Less-Attention Vision Transformer as a multi-scale backbone.

Paper: https://arxiv.org/abs/2406.00427. ``docs/paper_to_code.md`` maps its equations to this code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmlavit.registry import MODELS

from ..layers import (
    AttentionResidual,
    Block,
    LessAttention,
    OutputNorm,
    PatchEmbed,
    Stage,
    VanillaAttention,
)
from ..pretrained import load_pretrained
from ..trace import LayerTrace, trace_layers
from .arch import NUM_STAGES, are_positive_ints, parse_arch


@MODELS.register_module()
class LaViT(BaseModule):
    """Less-Attention Vision Transformer.

    Each of four stages embeds its map, computes attention logits from queries and keys in its first
    layers (vanilla attention, VA), and in all later ones transforms the logits it already has (less
    attention, LA). The last logits of a stage guide the first layer of the next (attention
    residual, AR). Attention runs in non-overlapping windows, which makes the transforms independent
    of the image size; a window as large as the stage's map is the paper's global attention.

    Args:
        arch: ``'nano'``, ``'tiny'``, ``'small'``, ``'base'`` or a dict with the keys ``channels``,
            ``depths``, ``va_layers`` (four values each) and optionally ``head_width`` and
            ``ffn_ratio``.
        window_size: Side of an attention window in tokens, one for all stages or one a stage.
        out_indices: Stages (0 to 3, or -4 to -1) whose maps are returned. Stages behind the last
            one are not built.
        drop_path_rate: Stochastic depth: the last block's drop probability; the others' rise
            linearly to it.
        attention_residual: Whether a stage's attention guides the next stage's.
        less_attention: Whether layers behind ``va_layers`` are less attention. If not, all are
            vanilla: the all-VA baseline of the paper's ablation.
        in_channels: Channels of the image.
        frozen_stages: How many stages are frozen, with the first embedding; 0 freezes that alone,
            -1 nothing.
        with_cp: Whether to trade time for memory by recomputing activations in the backward pass.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')`` transfers a
            checkpoint, strictly (see :func:`mmlavit.models.pretrained.load_pretrained`).

    Raises:
        TypeError: If an argument has another type than stated.
        ValueError: If an argument's value is not allowed. Both messages name the argument, the
            value and what is allowed.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'small',
        window_size: int | Sequence[int] = 7,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        attention_residual: bool = True,
        less_attention: bool = True,
        in_channels: int = 3,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = parse_arch(arch)
        self.window_size = _parse_window_size(window_size)
        self.out_indices = _parse_out_indices(out_indices)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate={drop_path_rate!r}: expected 0 <= rate < 1')
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= NUM_STAGES:
            raise ValueError(
                f'frozen_stages={frozen_stages!r}: expected a whole number from -1 to {NUM_STAGES}'
            )
        self.frozen_stages = frozen_stages
        self.in_channels = in_channels
        channels, depths, va_layers, head_width, ffn_ratio = self.arch

        drop_path = (drop_path_rate * k / (sum(depths) - 1) for k in range(sum(depths)))
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            dim, heads = channels[i], channels[i] // head_width
            residual = None
            if attention_residual and i > 0:
                residual = AttentionResidual(channels[i - 1] // head_width, heads)
            num_vanilla = va_layers[i] if less_attention else depths[i]
            # by the less attention behind it, or by the residual of the next stage
            is_read = num_vanilla < depths[i] or (attention_residual and i < self.out_indices[-1])
            blocks = []
            for j in range(depths[i]):
                attention: VanillaAttention | LessAttention
                if j < num_vanilla:
                    keep_logits = is_read and j == num_vanilla - 1
                    attention = VanillaAttention(dim, heads, keep_logits)
                else:
                    attention = LessAttention(dim, self.window_size[i])
                blocks.append(Block(attention, dim, ffn_ratio, next(drop_path)))
            # behind the blocks: a seed then gives the start values that it gave in version 0.1.0
            embed = PatchEmbed(channels[i - 1] if i else in_channels, dim, patch=2 if i else 4)
            self.stages.append(Stage(embed, residual, blocks, self.window_size[i], with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', OutputNorm(channels[i]))
        self.apply(_initialize)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            x: Images of shape ``(B, in_channels, h, w)``, of any size.

        Returns:
            One contiguous map a stage of ``out_indices``, each normalized, of shape ``(B, channels,
            ceil(h / stride), ceil(w / stride))`` with strides 4, 8, 16 and 32.

        Raises:
            ValueError: If the batch is empty or has another shape.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(
                f'images of shape {tuple(x.shape)}: expected (B, {self.in_channels}, h, w), '
                'all at least 1'
            )
        x = x.permute(0, 2, 3, 1)
        logits = windows = None
        outs = []
        for i, stage in enumerate(self.stages):
            x, logits, windows = stage(x, logits, windows)
            if i in self.out_indices:
                outs.append(self.get_submodule(f'norm{i}')(x))
        return tuple(outs)

    def forward_trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], list[LayerTrace]]:
        """Extract features, and keep the logits of every layer.

        Args:
            x: Images of shape ``(B, in_channels, h, w)``.

        Returns:
            What :meth:`forward` returns, and one entry a layer in the order of the pass.
        """
        layers: list[LayerTrace] = []
        # no method of the list itself: torch.compile would break its graph there
        handles = trace_layers(self, lambda layer: layers.append(layer))
        try:
            return self(x), layers
        finally:
            for handle in handles:
                handle.remove()

    def init_weights(self) -> None:
        """Load the checkpoint that ``init_cfg`` names; without one, keep the start values.

        Raises:
            UserError: If the checkpoint does not fit.
        """
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        pretrained = [c for c in configs if c.get('type') == 'Pretrained']
        if not pretrained:
            super().init_weights()
            return
        for config in pretrained:
            load_pretrained(self, **{k: v for k, v in config.items() if k != 'type'})
        self.is_init = True

    def train(self, mode: bool = True) -> 'LaViT':
        """Set training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Place a parameter in depth, for layer-wise learning-rate decay.

        Args:
            param_name: Name of the parameter, with ``prefix``.
            prefix: What the backbone's names start with, as ``'backbone.'``.

        Returns:
            The layer's number, from 0 (the first embedding) to the count less 1 (output norms and
            whatever follows the backbone), and the count of layers. A downsampling and an attention
            residual belong to the block that follows them.
        """
        depths = self.arch.depths[: len(self.stages)]
        num_layers = sum(depths) + 2
        parts = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or parts[0] != 'stages':
            return num_layers - 1, num_layers
        stage = int(parts[1])
        if parts[2] == 'blocks':
            return sum(depths[:stage]) + int(parts[3]) + 1, num_layers
        return (sum(depths[:stage]) + 1 if stage else 0), num_layers

    def _freeze(self) -> None:
        frozen: list[nn.Module] = []
        if self.frozen_stages == 0:
            frozen.append(self.get_submodule('stages.0.embed'))
        for i in range(min(self.frozen_stages, len(self.stages))):
            frozen.append(self.stages[i])
            if i in self.out_indices:
                frozen.append(self.get_submodule(f'norm{i}'))
        for module in frozen:
            module.eval()
            module.requires_grad_(False)


def _initialize(module: nn.Module) -> None:
    """Start values: a fan-out normal for convolutions, a truncated normal for linear layers."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=(2 * module.groups / fan_out) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _parse_window_size(window_size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = [window_size] * NUM_STAGES if isinstance(window_size, int) else window_size
    if not are_positive_ints(sizes, NUM_STAGES):
        raise ValueError(
            f'window_size={window_size!r}: expected a positive integer or {NUM_STAGES} of them'
        )
    return tuple(sizes)


def _parse_out_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    indices = [out_indices] if isinstance(out_indices, int) else out_indices
    allowed = range(-NUM_STAGES, NUM_STAGES)
    if not isinstance(indices, Sequence) or not all(
        isinstance(i, int) and i in allowed for i in indices
    ):
        indices = []
    indices = [i % NUM_STAGES for i in indices]
    if not indices or indices != sorted(set(indices)):
        raise ValueError(
            f'out_indices={out_indices!r}: expected rising stage numbers from 0 to '
            f'{NUM_STAGES - 1}, or from -{NUM_STAGES} to -1'
        )
    return tuple(indices)

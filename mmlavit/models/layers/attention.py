"""Vanilla attention and the less attention that replaces it (paper, section 3.2)."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from .regions import Region, Scores, cut_map, join_map
from .resize import resize_transform
from .scores import key_bias, saturate, softmax, transform
from .windows import merge, partition


def is_window_transform(key: str) -> bool:
    """Tell whether a state dict's key names a transform that is resized on loading."""
    return key.rpartition('.')[2] in ('theta', 'psi')


class WindowedAttention(nn.Module):
    """What both attentions share: tokens are projected, attend within windows, and are projected.

    Args:
        dim: Channels of a token.
        num_heads: Heads; divides ``dim``.
        window: Side of a window in tokens; ``N`` is its square.

    Raises:
        ValueError: If ``dim`` is no multiple of ``num_heads`` or ``window`` is below 1.
    """

    proj: nn.Linear

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(
                f'num_heads={num_heads!r}: expected a whole number that divides dim={dim!r}'
            )
        if window < 1:
            raise ValueError(f'window={window!r}: expected a whole number of at least 1')
        self.num_heads = num_heads
        self.window = window

    def forward(
        self,
        x: Tensor,
        scores: Scores = None,
        mask: Tensor | None = None,
        regions: Sequence[Region] | None = None,
    ) -> tuple[Tensor, Scores]:
        """Attend within each window.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            scores: What the attention starts from, ``(groups, heads, N, N)``: to vanilla attention
                the residual of the previous stage, added to the logits (paper, eq. 7), or None; to
                less attention the logits of the previous layer.
            mask: Booleans of shape ``(groups, N)``, true where a token is real.
            regions: Of the map, instead of windows padded at the border. There is no mask then, and
                scores are one tensor ``(groups, heads, a * b, a * b)`` a region.

        Returns:
            Map of shape ``(B, h, w, dim)`` and logits like ``scores``, None where no later layer
            reads them; logits of padded tokens carry no meaning.
        """
        if regions is not None:
            assert not isinstance(scores, Tensor)
            mixed, found = self.mix(x, scores, regions)
            return self.proj(mixed), found
        assert not isinstance(scores, list)
        projected = self._project_in(x)  # (B, h, w, parts * dim)
        parts = projected.chunk(projected.shape[-1] // x.shape[-1], -1)
        tokens = [partition(part, self.window, self.num_heads) for part in parts]
        out, logits = self.attend(tokens, scores, mask, (self.window, self.window))
        return self.proj(merge(out, self.window, x.shape)), logits

    def mix(
        self,
        x: Tensor,
        scores: Sequence[Tensor] | None,
        regions: Sequence[Region],
        out: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """Attend within each window of a map's regions, without the projection that follows.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            scores: What the attention starts from, ``(groups, heads, a * b, a * b)`` for each
                region, or None.
            regions: Of the map.
            out: Where the logits may be written, shaped like them.

        Returns:
            Map of shape ``(B, h, w, dim)`` and logits like ``scores``: a tensor of ``out`` itself
            if they were written there.
        """
        projected = self._project_in(x)  # (B, h, w, parts * dim)
        windows = cut_map(projected, regions, self.num_heads, projected.shape[-1] // x.shape[-1])
        del projected  # the windows are copies: its memory may serve the attention
        found: list[tuple[Tensor, Tensor | None]] = []
        for i, tokens in enumerate(windows):
            start, place = scores[i] if scores else None, out[i] if out else None
            found.append(self.attend(tokens, start, None, regions[i].window, place))
        mixed = join_map([tokens for tokens, _ in found], regions, x.shape)
        return mixed, [part for _, part in found if part is not None] or None

    def _project_in(self, x: Tensor) -> Tensor:
        """Project a map to all that its tokens give, side by side in the channels."""
        raise NotImplementedError

    def attend(
        self,
        tokens: Sequence[Tensor],
        scores: Tensor | None,
        mask: Tensor | None,
        window: tuple[int, int],
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within windows of one shape.

        Args:
            tokens: Queries, keys and values or values alone, each ``(groups, heads, N, d)``.
            scores: What the attention starts from, ``(groups, heads, N, N)``, or None.
            mask: Booleans of shape ``(groups, N)``, true where a token is real.
            window: Rows and columns of tokens; ``N`` is their product.
            out: Where the logits may be written, ``(groups, heads, N, N)``.

        Returns:
            Tokens of shape ``(groups, heads, N, d)`` and logits of shape ``(groups, heads, N, N)``,
            None where no later layer reads them.
        """
        raise NotImplementedError


class VanillaAttention(WindowedAttention):
    """Windowed multi-head self-attention that hands its logits on (paper, eq. 1 to 4).

    ``A = Q K^T / sqrt(d) + residual``, output ``softmax(A) V``.
    """

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__(dim, num_heads, window)
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def scores(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute the logits alone, also where :meth:`forward` does not hand them on.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            residual: Scores of the previous stage, shape ``(groups, heads, N, N)``.

        Returns:
            Logits of shape ``(groups, heads, N, N)``; those of padded tokens carry no meaning.
        """
        q, k, _ = self.qkv(x).chunk(3, dim=-1)
        q, k = (partition(part, self.window, self.num_heads) for part in (q, k))
        return self._score(q, k, residual)

    def _project_in(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def attend(
        self,
        tokens: Sequence[Tensor],
        scores: Tensor | None,
        mask: Tensor | None,
        window: tuple[int, int],
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend by queries and keys, as :meth:`WindowedAttention.attend` says."""
        q, k, v = tokens
        logits = self._score(q, k, scores)
        # (groups, heads, N, N) x (groups, heads, N, d) -> (groups, heads, N, d)
        return softmax(logits, mask).to(v.dtype) @ v, logits

    def _score(self, q: Tensor, k: Tensor, residual: Tensor | None) -> Tensor:
        logits = saturate((q * self.scale) @ k.mT)  # (groups, heads, N, N)
        if residual is not None:
            logits = saturate((logits + residual).to(logits.dtype))
        return logits


class FusedVanillaAttention(VanillaAttention):
    """Vanilla attention whose logits no later layer reads: they are never written to memory."""

    def attend(
        self,
        tokens: Sequence[Tensor],
        scores: Tensor | None,
        mask: Tensor | None,
        window: tuple[int, int],
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as :class:`VanillaAttention` does, and return None for the logits."""
        q, k, v = tokens
        bias = None if scores is None else scores.to(q.dtype)
        if mask is not None:
            keys = key_bias(mask, q.dtype)
            bias = keys if bias is None else bias + keys
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if torch.compiler.is_exporting():
            # the exporter's own attention has another memory layout, which a later view depends on
            attended = attended.clone(memory_format=torch.contiguous_format)
        return attended, None


class LessAttention(WindowedAttention):
    """Windowed attention whose logits are transformed from the previous layer's (paper, eq. 5).

    ``A^l = Psi A^{l-1} Theta^T``, output ``softmax(A^l) V``. Tokens give the values only: there are
    no queries and no keys. The paper writes ``Psi(Theta(A)^T)^T`` with both acting on rows.

    ``theta`` and ``psi`` hold the deviation from the identity, so that a new layer reuses the
    scores as they are and weight decay pulls back to that rather than to zero.
    """

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__(dim, num_heads, window)
        self.theta = nn.Parameter(torch.zeros(window**2, window**2))
        self.psi = nn.Parameter(torch.zeros(window**2, window**2))
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def _project_in(self, x: Tensor) -> Tensor:
        return self.v(x)

    def attend(
        self,
        tokens: Sequence[Tensor],
        scores: Tensor | None,
        mask: Tensor | None,
        window: tuple[int, int],
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend by the transformed scores, as :meth:`WindowedAttention.attend` says."""
        (v,) = tokens
        assert scores is not None
        logits = saturate(scores.to(v.dtype))
        theta, psi = (self._transform(t, window).to(v.dtype) for t in (self.theta, self.psi))
        logits = transform(logits, theta, psi, mask, out)
        # (groups, heads, N, N) x (groups, heads, N, d) -> (groups, heads, N, d)
        return softmax(logits, mask).to(v.dtype) @ v, logits

    def _transform(self, deviation: Tensor, window: tuple[int, int]) -> Tensor:
        """The transform, ``(a * b, a * b)``, of the tokens that a window of ``a`` by ``b`` has."""
        whole = deviation + torch.eye(
            len(deviation), dtype=deviation.dtype, device=deviation.device
        )
        if window == (self.window, self.window):
            return whole
        n, (a, b) = self.window, window
        return whole.view(n, n, n, n)[:a, :b, :a, :b].reshape(a * b, a * b)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the transforms of another window size (docs/paper_to_code.md, decision 1)."""
        for key in (prefix + 'theta', prefix + 'psi'):
            weight = state_dict.get(key)
            if weight is not None and weight.shape != self.theta.shape:
                state_dict[key] = resize_transform(weight, len(self.theta))
                print_log(
                    f'resized {key}: {len(weight)} -> {len(self.theta)} tokens a window',
                    logger='current',
                    level=logging.INFO,
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

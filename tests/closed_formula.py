"""Size and cost of a classifier by arithmetic over the arch table, without building a model."""

from collections import Counter

from mmlavit.models.backbones.arch import Arch


def closed_formula(arch: Arch, va_layers: tuple = ()) -> dict[str, tuple[int, int]]:
    """Parameters and multiply-adds of each part, for 1000 classes and an image of 224x224."""
    side, window, classes = 224, 7, 1000
    params, macs = Counter(), Counter()
    cin, tokens, heads_before, windows_before = 3, side * side, 0, 0
    n = window**2
    layers = zip(arch.channels, arch.depths, va_layers or arch.va_layers, strict=True)
    for stage, (c, depth, va) in enumerate(layers):
        patch, h, hidden = (4, 2, 2, 2)[stage], c // arch.head_width, int(c * arch.ffn_ratio)
        tokens //= patch**2
        side //= patch
        windows = (-(-side // window)) ** 2
        pairs = windows * n**2
        params['embedding'] += cin * patch**2 * c + c
        params['norms'] += 2 * c
        macs['embedding'] += tokens * cin * patch**2 * c
        if stage:
            residual = 'attention residual (AR)'
            params[residual] += 16 * heads_before + heads_before * h + h
            # a product over the keys (49) for each of 4x4 cells of 2x2 queries and 4x4 cells of
            # keys of a window of 7; then the 1x1
            macs[residual] += windows_before * heads_before * 4**2 * 4 * n * 4**2
            # that matrix from four taps of queries by four of keys, for 2x2 parities of a window
            macs[residual] += 4 * heads_before * 4 * 4 * n * 4**2
            macs[residual] += heads_before * h * pairs
        for layer in range(depth):
            params['norms'] += 4 * c  # two LayerNorms
            params['FFN'] += c * hidden + hidden + 9 * hidden + hidden + hidden * c + c
            macs['FFN'] += tokens * (2 * c * hidden + 9 * hidden)
            attention = 'vanilla attention (VA)' if layer < va else 'less attention (LA)'
            params[attention] += c * c + c  # projection
            # projection, attention times values
            macs[attention] += tokens * c * c + pairs * c
            if layer < va:
                params[attention] += 3 * c * c + 3 * c
                macs[attention] += tokens * 3 * c * c + pairs * c
            else:
                params[attention] += c * c + c + 2 * n * n
                macs[attention] += tokens * c * c + h * 2 * n * pairs
        cin, heads_before, windows_before = c, h, windows
    params['norms'] += 2 * cin
    params['head'] += classes * cin + classes
    macs['head'] += classes * cin
    return {part: (params[part], macs[part]) for part in params}

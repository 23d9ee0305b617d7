"""Write the slim, hash-named copy of a checkpoint that is handed to others.

It keeps the weights and the meta information, which names the classes and holds the config, and
drops what only a resumed training needs: the state of the optimizer, of the schedulers, of the
logs and of the moving average, whose weights mmengine already keeps as the model's. The name ends
in the first 8 digits of the file's SHA-256, unless --out names the file. Publishing a checkpoint
again gives the same file.
"""

import hashlib
import io
import json
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmlavit.atomic_backend import AtomicBackend
from mmlavit.checkpoints import read_checkpoint
from mmlavit.checks.datasets import listing
from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.errors import UserError

KEPT = ('meta', 'state_dict')
FILE_SUFFIXES = ('.pth', '.safetensors')


def build_parser() -> LineParser:
    """Describe the command line."""
    parser = LineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint file, as training wrote it')
    parser.add_argument(
        '--out',
        type=Path,
        help='folder to write to, by default that of the file; or a name that ends in .pth or '
        '.safetensors',
    )
    parser.add_trust_checkpoint()
    return parser


def publish(args: Namespace) -> None:
    """Publish as the arguments say."""
    source = Path(args.checkpoint).expanduser()
    checkpoint = read_checkpoint(str(source))
    target = args.out or source.parent
    content = serialize({key: checkpoint.get(key) or {} for key in KEPT}, target.suffix)
    if target.suffix not in FILE_SUFFIXES:
        digest = hashlib.sha256(content).hexdigest()[:8]
        stem = source.stem
        target /= f'{stem if stem.endswith(f"-{digest}") else f"{stem}-{digest}"}.pth'
    written = write_once(target, content)

    meta = checkpoint.get('meta') or {}
    classes = (meta.get('dataset_meta') or {}).get('classes')
    dropped = [key for key in checkpoint if key not in KEPT]
    print(f'kept: state_dict ({len(checkpoint["state_dict"])} entries), meta ({", ".join(meta)})')
    print(
        f'classes: {listing(classes, 5) if classes else "none, the checkpoint does not name them"}'
    )
    print(f'dropped: {", ".join(dropped) or "nothing"}')
    before, after = (size / 2**20 for size in (source.stat().st_size, len(content)))
    print(f'size: {before:.1f} MiB -> {after:.1f} MiB')
    print(f'{"written" if written else "already there"}: {target}')


def serialize(checkpoint: dict[str, Any], suffix: str) -> bytes:
    """Save a checkpoint to bytes, which unlike a file do not depend on the file's name.

    The suffix ``'.safetensors'`` asks for that format, which keeps the meta information as JSON.

    Raises:
        UserError: If safetensors cannot hold an entry.
    """
    if suffix != '.safetensors':
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        return buffer.getvalue()
    from safetensors.torch import save

    try:
        # Copies, since tensors that share their storage are refused.
        tensors = {
            key: value.clone(memory_format=torch.contiguous_format)
            for key, value in checkpoint['state_dict'].items()
        }
        # Arrays and scalars of numpy become lists and numbers.
        meta = json.dumps(checkpoint['meta'], default=lambda value: value.tolist())
    except (AttributeError, TypeError) as error:
        raise UserError(f'safetensors holds tensors and JSON only: {error}') from error
    return save(tensors, {'meta': meta})


def write_once(path: Path, content: bytes) -> bool:
    """Write a file completely or not at all; return whether the same was not there already.

    Raises:
        UserError: If a different file is there.
    """
    if path.exists():
        if path.is_file() and path.read_bytes() == content:
            return False
        raise UserError(f'{str(path)!r} exists and differs from what would be written')
    AtomicBackend().put(content, path)
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), publish, argv)


if __name__ == '__main__':
    main()

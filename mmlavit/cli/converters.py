"""What the tools share that write a data set: where it goes, and all of it or nothing."""

from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from mmlavit.errors import UserError
from mmlavit.shipped import TOOLS

from .launch import run_tool
from .parsers import LineParser

__all__ = ['existing', 'new_folder', 'output_parser', 'read_image', 'run_converter', 'subfolder']


def output_parser(description: str | None, name: str) -> LineParser:
    """A parser with ``--out``, by default the folder ``data/name`` where the configs look.

    That lies in a clone, or in the working directory of an installed package.
    """
    parser = LineParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    root = Path() if TOOLS.parent.name == '.mim' else TOOLS.parent
    parser.add_argument(
        '--out', type=Path, default=root / 'data' / name, help='folder to write (%(default)s)'
    )
    return parser


def run_converter(
    description: str | None,
    name: str,
    convert: Callable[[Path, Path], str],
    argv: Sequence[str] | None,
) -> None:
    """Run a tool that turns a download into ``data/name``.

    ``convert`` gets the source and an empty folder to fill, and returns what it has written.
    """
    parser = output_parser(description, name)
    parser.add_argument('source', type=Path, metavar='SOURCE', help='the download')

    def tool(args: Namespace) -> None:
        with new_folder(args.out) as folder:
            written = convert(args.source.expanduser(), folder)
        print(f'{args.out}: {written}')

    run_tool(parser, tool, argv)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill beside ``out``, which takes that name in the end; when interrupted, nothing.

    Raises:
        UserError: If ``out`` is there and not an empty folder, or anything cannot be read or
            written.
    """
    out = out.expanduser().resolve()  # behind a link: a neighbour is on the same disk
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f'{out} is there already. Remove it, or choose another --out.')
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f'.{out.name}-', dir=out.parent) as scratch:
            folder = Path(scratch) / out.name
            folder.mkdir()
            yield folder
            folder.rename(out)
    except OSError as error:
        raise UserError(str(error)) from error


def subfolder(source: Path, name: str) -> Path:
    """The folder of that name in ``source``, or ``source`` itself where it has none."""
    return source / name if (source / name).is_dir() else source


def existing(path: Path) -> Path:
    """Insist on a file or folder.

    Raises:
        UserError: If it is missing.
    """
    if not path.exists():
        raise UserError(f'{path} is missing; --help says what SOURCE has to hold')
    return path


def read_image(path: Path) -> Image.Image:
    """Decode an image.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        image = Image.open(existing(path))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:  # PIL's PNG reader raises a SyntaxError
        raise UserError(f'{path} cannot be read as an image: {error}') from error
    return image

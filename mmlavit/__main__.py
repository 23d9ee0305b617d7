"""Run the tools that come with the package, from any directory."""

import ast
import runpy
import sys
from argparse import REMAINDER, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from mmlavit.cli.parsers import LineParser

from .shipped import TOOLS, config_names, config_path


def build_parser(tools: dict[str, Path]) -> LineParser:
    """Describe the command line.

    Args:
        tools: Files by the name of the command.
    """
    lines = ['configs: List the shipped configs, or print the path of the one that is named.']
    for name, path in tools.items():
        docstring = ast.get_docstring(ast.parse(path.read_text('utf-8'))) or ''
        lines.append(f'{name}: {docstring.partition(chr(10))[0]}')
    parser = LineParser(
        prog='python -m mmlavit',
        usage='%(prog)s COMMAND [ARGUMENT ...]',
        description=__doc__,
        epilog='commands, each with its own --help:\n  ' + '\n  '.join(lines),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', choices=['configs', *tools], metavar='COMMAND')
    parser.add_argument(
        'arguments',
        nargs=REMAINDER,
        metavar='ARGUMENT',
        help='of the command; a shipped config may go by the name of its file',
    )
    return parser


def find_config(argument: str) -> str:
    """Put the path in the place of a shipped config's name; a file of that name goes first."""
    if not argument.endswith('.py') or Path(argument).exists():
        return argument
    try:
        return config_path(argument)
    except FileNotFoundError:
        return argument


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    tools = {path.stem: path for path in sorted(TOOLS.glob('*.py'))}
    parser = build_parser(tools)
    args = parser.parse_args(argv)
    if args.command != 'configs':
        tool = str(tools[args.command])
        sys.argv = [tool, *map(find_config, args.arguments)]
        runpy.run_path(tool, run_name='__main__')
        return
    try:
        found = list(map(config_path, args.arguments)) or config_names()
    except FileNotFoundError as error:
        parser.error(str(error))
    print('\n'.join(found))


if __name__ == '__main__':
    main()

"""The command ``mmlavit``: runs the tools that come with the package, from any directory."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from mmlavit.cli.parsers import LineParser

from .shipped import TOOLS, config_names, config_path


def main(argv: Sequence[str] | None = None) -> None:
    """Run a tool, or list the shipped configs."""
    tools = {path.stem: str(path) for path in sorted(TOOLS.rglob('*.py'))}
    parser = LineParser(prog='mmlavit', usage='%(prog)s COMMAND [ARGUMENT ...]')
    parser.epilog = f'commands, each with its own --help: configs, {", ".join(tools)}'
    parser.add_argument('command', choices=['configs', *tools], metavar='COMMAND')
    words = list(sys.argv[1:] if argv is None else argv)
    command, arguments = parser.parse_args(words[:1]).command, words[1:]
    try:
        if command == 'configs':
            print('\n'.join(map(config_path, arguments) if arguments else config_names()))
            return
        # a shipped config may go by the name of its file; a file of that name goes first
        shipped = {Path(name).name: config_path(name) for name in config_names()}
    except FileNotFoundError as error:
        parser.error(str(error))
    sys.argv = [tools[command]]
    sys.argv += [word if Path(word).exists() else shipped.get(word, word) for word in arguments]
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()

"""Train a model of mmpretrain, mmdet or mmseg."""

from argparse import Namespace
from collections.abc import Sequence

from mmlavit.cli.configs import training_config
from mmlavit.cli.launch import build_runner, run_tool
from mmlavit.cli.parsers import TrainingParser


def train(args: Namespace) -> None:
    """Train as the arguments say.

    Raises:
        UserError: If the arguments do not fit the config, or files are missing.
    """
    build_runner(training_config(args)).train()


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(TrainingParser(__doc__), train, argv)


if __name__ == '__main__':
    main()

"""Log a test so that its file of metrics is whole."""

from mmengine.dist import master_only
from mmengine.hooks import LoggerHook
from mmengine.runner import Runner

from mmlavit.registry import HOOKS

__all__ = ['MetricsLoggerHook']


@HOOKS.register_module()
class MetricsLoggerHook(LoggerHook):
    """mmengine's hook, of which only the first process writes the metrics of a test.

    In mmengine every process writes the same file at the same time. Their timings differ in length,
    so that it may end in a piece of another's. ``PortableRunner`` takes this class where a config
    says ``LoggerHook``.
    """

    @master_only
    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Log the metrics and write them to the log folder.

        Args:
            runner: The runner.
            metrics: What the test measured.
        """
        super().after_test_epoch(runner, metrics)

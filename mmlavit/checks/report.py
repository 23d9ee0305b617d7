"""Findings, one line each."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TextIO

from mmlavit.errors import UserError

__all__ = ['Report']

LISTED = 20
EXAMPLES = 3


class Report:
    """Prints findings as they come and counts them.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failures = 0
        self.warnings = 0
        self._failed: set[str] = set()

    def ok(self, text: str) -> None:
        """Report what is as it should be."""
        self._print('ok', text)

    def warn(self, text: str) -> None:
        """Report what upstream drops, converts or tolerates."""
        self.warnings += 1
        self._print('warn', text)

    def fail(self, text: str) -> None:
        """Report what stops or spoils a run, once where several checks meet it."""
        if text not in self._failed:
            self._failed.add(text)
            self.failures += 1
            self._print('FAIL', text)

    def warn_once(self, kind: str, examples: Sequence[str]) -> None:
        """Report findings of one kind in one line, with how many there are and the first ones."""
        more = ', ...' if len(examples) > EXAMPLES else ''
        self.warn(f'{kind}: {len(examples)} ({", ".join(examples[:EXAMPLES])}{more})')

    def fail_each(self, texts: Iterable[str]) -> None:
        """Report findings of one kind; all are counted, the first ones printed."""
        texts = [text for text in dict.fromkeys(texts) if text not in self._failed]
        for text in texts[:LISTED]:
            self.fail(text)
        rest = len(texts) - LISTED
        if rest > 0:
            self.failures += rest
            self._failed.update(texts[LISTED:])
            self._print('FAIL', f'and {rest} more like this')

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Report whatever is raised inside as a failure, instead of a traceback.

        Args:
            what: What was attempted, for errors that do not name it themselves.
        """
        try:
            yield
        except UserError as error:
            self.fail(str(error))
        except Exception as error:
            self.fail(f'{what}: {type(error).__name__}: {error}')

    def summary(self) -> str:
        """Count the findings in one line."""
        return f'{self.failures} wrong, {self.warnings} to look at'

    def _print(self, level: Literal['ok', 'warn', 'FAIL'], text: str) -> None:
        line = ' '.join(part.strip() for part in text.splitlines())
        print(f'{level:4}  {line}', file=self.stream, flush=True)

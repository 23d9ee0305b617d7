"""The page that leads from the paper to the code leads to code that is there."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = ROOT / 'docs/paper_to_code.md'
TEXT = PAGE.read_text('utf-8')
LINKS = sorted(set(re.findall(r'\[`([\w.]+)`\]\(\.\./(mmlavit/[\w/]+\.py)\)', TEXT)))


def names(path: Path) -> set[str]:
    """What a module defines, and what its classes do, as ``Class.method``."""
    found = set()
    for node in ast.parse(path.read_text('utf-8')).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f'{node.name}.{n.name}' for n in node.body if isinstance(n, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize(('name', 'target'), LINKS)
def test_names_are_defined_where_the_page_says(name: str, target: str) -> None:
    assert name in names(ROOT / target)


def test_what_the_code_refers_to_stands_on_the_page() -> None:
    """Numbers of equations and decisions; each decision names its code."""
    spans = re.findall(r'\| eq\. (\d+)(?: (?:to|and) (\d+))?', TEXT)
    known = {number for a, b in spans for number in range(int(a), int(b or a) + 1)}
    decisions = dict(re.findall(r'^### (\d+)\. (.+?)(?=^##)', TEXT, re.MULTILINE | re.DOTALL))
    for number, section in decisions.items():
        assert re.search(r'\]\(\.\./(mmlavit|configs)/', section), number
    for path in (ROOT / 'mmlavit').rglob('*.py'):
        text = path.read_text('utf-8')
        for found in re.findall(r'paper, eq\. (\d+)(?: (?:to|and) (\d+))?', text):
            assert {int(number) for number in found if number} <= known, path
        for number in re.findall(r'paper_to_code\.md, decision (\d+)', text):
            assert number in decisions, path

"""The page that leads from the paper to the code leads to code that is there."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = ROOT / 'docs/paper_to_code.md'
LINKS = re.findall(r'\[`([\w.]+)`\]\((\.\./mmlavit/[\w/]+\.py)\)', PAGE.read_text('utf-8'))
SECTIONS = re.split(r'^### ', PAGE.read_text('utf-8'), flags=re.MULTILINE)[1:]


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


@pytest.mark.parametrize(('name', 'target'), sorted(set(LINKS)))
def test_names_are_defined_where_the_page_says(name: str, target: str) -> None:
    assert name in names((PAGE.parent / target).resolve())


def test_every_decision_names_its_code() -> None:
    """Ten decisions, each with a link into the package or its configs."""
    assert [section.partition('.')[0] for section in SECTIONS] == [str(i) for i in range(1, 11)]
    for section in SECTIONS:
        assert re.search(r'\]\(\.\./(mmlavit|configs)/', section), section


def test_equations_of_docstrings_stand_on_the_page() -> None:
    """Equation numbers and decisions that the code refers to."""
    page = PAGE.read_text('utf-8')
    spans = [
        range(int(a), int(b or a) + 1)
        for a, b in re.findall(r'\| eq\. (\d+)(?: (?:to|and) (\d+))?', page)
    ]
    known = {number for span in spans for number in span}
    assert known == set(range(1, 11))
    for path in (ROOT / 'mmlavit').rglob('*.py'):
        text = path.read_text('utf-8')
        for found in re.findall(r'paper, eq\. (\d+)(?: (?:to|and) (\d+))?', text):
            assert {int(number) for number in found if number} <= known, path
        for number in re.findall(r'paper_to_code\.md, decision (\d+)', text):
            assert f'### {number}. ' in page, path

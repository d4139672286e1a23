"""The pages: what they point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_tidy import ROOT, name_of

PAGES = [path for folder in (".", "docs", "examples") for path in sorted((ROOT / folder).glob("*.md"))]
PAGES += sorted((ROOT / "docs").glob("*/*.md")) + sorted((ROOT / "examples").glob("*/*.md"))


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have in links, made as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    shown = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in shown}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "frameworks").glob("*.md")), ids=name_of)
def test_a_frameworks_page_begins_with_the_lines_to_add(page: Path) -> None:
    """Then it says what is captured and what is not, and the index names it."""
    assert re.match(r"# .+\n\n```", page.read_text())
    assert re.findall(r"^## (.*)$", page.read_text(), flags=re.MULTILINE)[:2] == ["What is captured", "What is not"]
    assert f"(frameworks/{page.name})" in (ROOT / "docs" / "frameworks.md").read_text()

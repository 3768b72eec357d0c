"""Which modules of a folded tree are drawn, and which of the others each stands for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from surgery.reports.tree import Branch


class StandIns:
    """Which drawn module stands for each module of a folded tree."""

    def __init__(self, tree: Branch):
        self.tree = tree
        self.children: dict[int, dict[str, Branch]] = {}

    def stands_for(self, path: str) -> str | None:
        """The path of the module that is drawn for the one at ``path``; None within one that is not."""
        branch = self.tree
        for name in path.split(".") if path else ():
            found = self._named(branch).get(name)
            if found is None:
                return None
            branch = found
        return branch.path

    def _named(self, branch: Branch) -> dict[str, Branch]:
        known = self.children.get(id(branch))
        if known is None:
            known = {
                name: replace(child, children=()) if like else child
                for child, like in unlike(branch)
                for name in child.names
            }
            self.children[id(branch)] = known
        return known


def unlike(branch: Branch) -> Iterator[tuple[Branch, Branch | None]]:
    """The children of ``branch``, each with an earlier one that reads the same, if there is one."""
    first: dict[object, Branch] = {}
    for child in branch.children:
        numbered = child.names[0].isdigit()
        like = first.setdefault(child.likeness(), child) if numbered else child
        yield child, None if like is child else like

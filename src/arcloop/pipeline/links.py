"""Links of a lineage, and the tree that shows them on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rich.text import Text
from rich.tree import Tree


@dataclass
class Link:
    """An artifact or file in the lineage.

    Attributes:
        what: Kind and path.
        sha256: Hash of the artifact or file; None if it cannot be read.
        facts: Name -> text, printed below the link.
        fault: Reason why the verification failed; None if the link is verified.
        parents: Links of the artifacts and files that it was made from.
    """

    what: str
    sha256: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None
    parents: list[Link] = field(default_factory=list)

    def faults(self) -> Iterator[str]:
        """Yield the faults of this link and of all its ancestors."""
        if self.fault is not None:
            yield f"{self.what}: {self.fault}"
        for parent in self.parents:
            yield from parent.faults()


def make_tree(link: Link, shown: set[str]) -> Tree:
    """Return a link and its ancestors as a tree; the ancestors of each link are shown once."""
    sign = ("x", "red") if link.fault else ("ok", "green") if link.sha256 else ("?", "dim")
    label = Text.assemble(sign, " ", link.what)
    if link.what in shown:
        return Tree(label.append(" (shown above)", "dim"))
    shown.add(link.what)
    tree = Tree(label.append(f" {link.sha256[:12]}" if link.sha256 else "", "dim"))
    for name, value in link.facts.items():
        tree.add(Text(f"{name}: {value}", "dim"))
    tree.children += [make_tree(parent, shown) for parent in link.parents]
    return tree

"""The lineage of experts: who came from whom, per block, as ``lineage.json`` in the run folder.

    {"blocks": [[{"id": 0, "parent": null, "born": 0, "slot": 0, "died": null, "merged_into": null}, ...], ...]}

Ids count up within a block, steps are optimizer steps. A clone is the child of the expert that it was copied from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bouton.files import write_json

FILE = "lineage.json"
Individual = dict[str, Any]


class Lineage:
    """All experts that a run has had.

    Args:
        blocks: per block, its individuals.
    """

    def __init__(self, blocks: Sequence[Sequence[Individual]]) -> None:
        self.blocks = [[dict(one) for one in block] for block in blocks]

    @classmethod
    def read(cls, folder: Path) -> Lineage | None:
        """What the run folder holds; None if it holds none."""
        try:
            return cls(json.loads((folder / FILE).read_text())["blocks"])
        except FileNotFoundError:
            return None

    def write(self, folder: Path) -> None:
        """Replace the file."""
        write_json(folder / FILE, {"blocks": self.blocks})

    def lives(self, now: int, columns: int = 200) -> Tensor:
        """(blocks, experts, columns): the generation of every expert while it lives, NaN before and after.

        An expert stands below the one that it was copied from; the columns are the steps from 0 to ``now``.
        """
        at = torch.linspace(0, now, min(columns, now + 1))
        found = torch.full((len(self.blocks), max(1, *map(len, self.blocks)), len(at)), torch.nan)
        for block, individuals in enumerate(self.blocks):
            for row, (one, generation) in enumerate(_depth_first(individuals)):
                alive = (at >= one["born"]) & (at < (torch.inf if one["died"] is None else one["died"]))
                found[block, row, alive] = float(generation)
        return found

    def forget_after(self, step: int) -> None:
        """Undo what happened after ``step``: a run that resumes there repeats it."""
        self.blocks = [[one for one in block if one["born"] <= step] for block in self.blocks]
        for block in self.blocks:
            for one in block:
                if one["died"] is not None and one["died"] > step:
                    one["died"] = one["merged_into"] = None

    def add_living(self, individuals: Tensor) -> None:
        """Those that live and are not known yet: (blocks, slots, 3) int64, id, parent and step of birth; -1: none."""
        for block, slots in enumerate(individuals.tolist()):
            known = {one["id"] for one in self.blocks[block]}
            for slot, (identity, parent, born) in enumerate(slots):
                if identity >= 0 and identity not in known:
                    self.birth(block, identity, None if parent < 0 else parent, born, slot)

    def birth(self, block: int, identity: int, parent: int | None, step: int, slot: int) -> None:
        """A new expert."""
        self.blocks[block].append(
            {"id": identity, "parent": parent, "born": step, "slot": slot, "died": None, "merged_into": None}
        )

    def death(self, block: int, identity: int, into: int, step: int) -> None:
        """An expert that was merged into another."""
        for one in self.blocks[block]:
            if one["id"] == identity:
                one["died"], one["merged_into"] = step, into


def _depth_first(individuals: Sequence[Individual]) -> list[tuple[Individual, int]]:
    """Every expert followed by its descendants, with its generation; one whose parent is not there is a founder."""
    known = {one["id"] for one in individuals}
    children: dict[int | None, list[Individual]] = {}
    for one in sorted(individuals, key=lambda one: (one["born"], one["id"])):
        children.setdefault(one["parent"] if one["parent"] in known else None, []).append(one)
    found = []
    todo = [(one, 0) for one in reversed(children.get(None, []))]
    while todo:
        one, generation = todo.pop()
        found.append((one, generation))
        todo += [(child, generation + 1) for child in reversed(children.get(one["id"], []))]
    return found

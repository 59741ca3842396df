"""The lineage of experts: who came from whom, per block, as ``lineage.json`` in the run folder.

    {"blocks": [[{"id": 0, "parent": null, "born": 0, "slot": 0, "died": null, "merged_into": null}, ...], ...]}

Ids count up within a block, steps are optimizer steps. A clone is the child of the expert that it was copied from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

    def forget_after(self, step: int) -> None:
        """Undo what happened after ``step``: a run that resumes there repeats it."""
        self.blocks = [[one for one in block if one["born"] <= step] for block in self.blocks]
        for block in self.blocks:
            for one in block:
                if one["died"] is not None and one["died"] > step:
                    one["died"] = one["merged_into"] = None

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

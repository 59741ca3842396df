"""The lineage file: births, deaths, and what a run that resumes forgets."""

from __future__ import annotations

from pathlib import Path

import torch

from bouton.mechanisms.lineage import Lineage


def test_births_and_deaths_are_written_and_forgotten(tmp_path: Path) -> None:
    assert Lineage.read(tmp_path) is None
    lineage = Lineage([[], []])
    lineage.birth(0, 0, None, 0, 0)
    lineage.birth(0, 1, None, 0, 1)
    lineage.birth(0, 2, 0, 10, 2)
    lineage.death(0, 1, 2, 20)
    lineage.write(tmp_path)
    read = Lineage.read(tmp_path)
    assert read is not None and read.blocks == lineage.blocks
    assert [(one["id"], one["parent"], one["died"], one["merged_into"]) for one in read.blocks[0]] == [
        (0, None, None, None),
        (1, None, 20, 2),
        (2, 0, None, None),
    ]
    read.forget_after(15)
    assert [one["died"] for one in read.blocks[0]] == [None, None, None]
    read.forget_after(5)
    assert [one["id"] for one in read.blocks[0]] == [0, 1]


def test_the_lives_of_a_family_stand_below_their_ancestors() -> None:
    lineage = Lineage([[], []])
    lineage.add_living(torch.tensor([[[0, -1, 0], [1, -1, 0], [3, 2, 6]], [[0, -1, 0], [-1, -1, -1], [-1, -1, -1]]]))
    lineage.birth(0, 2, 0, 4, 2)
    lineage.death(0, 2, 0, 8)
    lineage.add_living(torch.tensor([[[0, -1, 0], [1, -1, 0], [3, 2, 6]], [[0, -1, 0], [-1, -1, -1], [-1, -1, -1]]]))
    assert [one["id"] for one in lineage.blocks[0]] == [0, 1, 3, 2]  # nobody is born twice
    lives = lineage.lives(10)
    assert lives.shape == (2, 4, 11)
    # the rows are 0, its child 2, its grandchild 3, then 1
    born = [next(t for t in range(11) if not lives[0, row, t].isnan()) for row in range(4)]
    assert born == [0, 4, 6, 0]
    assert [float(lives[0, row].nan_to_num(-1).max()) for row in range(4)] == [0, 1, 2, 0]
    assert lives[0, 1, 8:].isnan().all() and not lives[0, 1, 4:8].isnan().any()
    assert not lives[1, 0].isnan().any() and lives[1, 1:].isnan().all()
    assert lineage.lives(0).shape == (2, 4, 1)
    assert lineage.lives(1000).shape[2] == 200

"""Activity of hidden layers whose values are known."""

import numpy as np
import pytest
import torch

from bouton.evaluation import evaluate
from bouton.evaluation.subject import Subject
from bouton.evaluation.tasks.activity import _Probe
from bouton.runs import Run


def test_known_vectors() -> None:
    probe = _Probe()
    hidden = torch.tensor([[[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [-2, 0.001, 3, 0]]])
    probe.see(hidden)
    zero, silent, hoyer, rate = (probe.rows[0][0] / 4).tolist()
    assert zero == pytest.approx((3 + 0 + 4 + 1) / 16)
    assert silent == pytest.approx((3 + 0 + 4 + 2) / 16)
    assert rate == pytest.approx((1 + 4 + 0 + 2) / 16)
    last = (2 - 5.001 / np.sqrt(13.000001)) / 1
    assert hoyer == pytest.approx((1 + 0 + 1 + last) / 4, abs=1e-5)
    assert probe.fired is not None and probe.fired.tolist() == [2, 2, 2, 1]


def test_it_sees_what_the_last_map_of_each_mixer_reads(stories: Run) -> None:
    found = evaluate(stories, ["activity"], {"activity": {"tokens": 256}})["activity"]
    subject = Subject(stories)
    rows = subject.validation_rows
    batch = subject.rows.gather(rows[np.arange(8) * len(rows) // 8])
    seen = []
    tails = [layer.mixer.part.tail for layer in stories.model.layers]  # type: ignore[union-attr]
    handles = [tail.down.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for tail in tails]
    with torch.no_grad():
        stories.model(batch["tokens"], starts=batch["starts"])
    for handle in handles:
        handle.remove()
    hidden = torch.stack(seen)
    assert found["numbers"]["firing_rate"] == pytest.approx((hidden > 0).float().mean().item(), abs=1e-6)
    assert found["numbers"]["zero_fraction"] == pytest.approx((hidden == 0).float().mean().item(), abs=1e-6)
    assert found["numbers"]["tokens"] == 256
    assert [row["place"].partition(":")[0] for row in found["tables"]["layers"]] == ["layer 0", "layer 1"]
    # No hook stays behind.
    assert not any(module._forward_pre_hooks for module in stories.model.modules())

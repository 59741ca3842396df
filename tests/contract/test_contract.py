"""Every mechanism of the registry, alone, in its variants, in pairs, and all together, against every clause."""

from __future__ import annotations

import pytest
import torch

from bouton.mechanisms import Mechanism, registry
from bouton.testing import CLAUSES, arms, skip_reason
from bouton.testing.arms import PLAIN, Arm, sample_tokens
from bouton.testing.run import applies
from bouton.testing.training import two_ranks_equal_one

ARMS, REFUSED = arms()
CASES = [
    pytest.param(clause, arm, id=f"{arm.label}-{clause.name}")
    for arm in [PLAIN, *ARMS]
    for clause in CLAUSES.values()
    if applies(clause, arm)
]


@pytest.mark.parametrize(("clause", "arm"), CASES)
def test_clause(clause, arm):
    if (reason := skip_reason(clause, arm)) is not None:
        pytest.skip(reason)
    clause.check(arm)


def test_two_ranks_equal_one():
    # Of the pairs those with organism state: without it a rank knows nothing of the other but the gradients.
    two_ranks_equal_one([PLAIN, *(arm for arm in ARMS if "+" not in arm.label or _has_organism_state(arm))])


def _has_organism_state(arm: Arm) -> bool:
    return any(registry.get(name).update_organism is not Mechanism.update_organism for name in arm.names)


def test_no_two_arms_are_equal_by_accident():
    seen: dict[bytes, str] = {}
    for arm in [PLAIN, *ARMS]:
        with torch.no_grad():
            logits = arm.build()(sample_tokens())[0]
        key = logits.numpy().tobytes()
        # A variant that only makes fixed numbers trainable, or acts through organism state, starts as its default does.
        if key in seen and not _only_training_differs(arm, seen[key]):
            raise AssertionError(f"{arm.label} computes exactly what {seen[key]} computes")
        seen[key] = arm.label


def _only_training_differs(arm: Arm, other: str) -> bool:
    (twin,) = [a for a in [PLAIN, *ARMS] if a.label == other]
    return _changing(arm) != _changing(twin)


def _changing(arm: Arm) -> set[str]:
    model = arm.build()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    # A loss of its own changes what is learned, not what is computed.
    own = {m.name for m in model.mechanism_list() if type(m).auxiliary_loss is not Mechanism.auxiliary_loss}
    return trainable | {name for name, _ in model.named_buffers()} | own


def test_pairs_that_do_not_compose_say_why():
    for label, reason in REFUSED.items():
        for name in label.split("+"):  # by its own name, or by that of what it refines and cannot be without
            assert any(f"'{n}'" in reason for n in (name, *registry.get(name).refines)), f"{label}: {reason}"
        assert "\n" not in reason


def test_skipped_clauses_exist_and_have_reasons(record_property):
    total = 0
    for name, cls in registry.mechanisms().items():
        for clause, reason in cls.skips.items():
            total += 1
            plain, _, variant = clause.partition("[")
            assert plain in CLAUSES, f"{name} skips the unknown clause {clause}"
            assert not variant or variant.removesuffix("]") in cls.variants, f"{name} skips {clause} of no variant"
            assert len(reason) > 10, f"{name} skips {clause} without a reason"
    record_property("skipped_clauses", total)
    print(f"contract: {total} clauses skipped with a reason over {len(registry.mechanisms())} mechanisms")

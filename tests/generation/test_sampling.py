import math

import pytest
import torch

from bouton.errors import BoutonError, ConfigError
from bouton.generation.sampling import Sampling, distribution, penalize, row_generator, sample

PLAIN = Sampling(temperature=1.0, top_k=0)


def row(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def as_dict(logits: torch.Tensor, sampling: Sampling) -> dict[int, float]:
    probabilities, tokens = distribution(logits, sampling)
    return {t: p for p, t in zip(probabilities[0].tolist(), tokens[0].tolist(), strict=True) if p > 0}


def test_without_filters_the_distribution_is_the_softmax() -> None:
    logits = torch.randn(3, 11, dtype=torch.float64)
    probabilities, tokens = distribution(logits, PLAIN)
    back = torch.zeros_like(logits).scatter(1, tokens, probabilities)
    torch.testing.assert_close(back, logits.softmax(-1))


def test_top_k_keeps_exactly_k_even_among_equals() -> None:
    kept = as_dict(torch.zeros(1, 7), Sampling(temperature=1.0, top_k=3))
    assert len(kept) == 3 and all(math.isclose(p, 1 / 3, rel_tol=1e-6) for p in kept.values())


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, {1}), (0.51, {1, 3}), (0.8, {1, 3}), (0.81, {0, 1, 3}), (1e-9, {1})])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: set[int]) -> None:
    # 0.5 and 0.3 are reached at their border, so they need no further token
    logits = row(0.15, 0.5 + 1e-12, 0.05, 0.3 - 1e-12)
    assert set(as_dict(logits, Sampling(temperature=1.0, top_k=0, top_p=top_p))) == kept


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = row(0.5, 0.3, 0.15, 0.05)
    assert set(as_dict(logits, Sampling(temperature=1.0, top_k=0, min_p=0.29))) == {0, 1, 2}
    assert set(as_dict(logits, Sampling(temperature=1.0, top_k=0, min_p=0.31))) == {0, 1}
    assert set(as_dict(logits, Sampling(temperature=1.0, top_k=0, min_p=1.0))) == {0}


def test_temperature_comes_before_the_filters() -> None:
    logits = row(0.5, 0.3, 0.2)
    # at temperature 0.5 the probabilities are squared: 0.66, 0.24, 0.11
    assert set(as_dict(logits, Sampling(temperature=0.5, top_k=0, top_p=0.6))) == {0}
    assert set(as_dict(logits, Sampling(temperature=1.0, top_k=0, top_p=0.6))) == {0, 1}
    probabilities = as_dict(logits, Sampling(temperature=0.5, top_k=0))
    assert math.isclose(probabilities[1], 0.09 / 0.38)


def test_top_p_counts_only_what_top_k_left() -> None:
    # of the two best, 0.4 and 0.3, the first alone has 0.57 of the mass
    assert set(as_dict(row(0.4, 0.3, 0.2, 0.1), Sampling(temperature=1.0, top_k=2, top_p=0.5))) == {0}


def test_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, 1.0]])
    history = torch.tensor([[-1, 0, 1, 0, 2]])
    assert penalize(logits, history, 2.0).tolist() == [[1.0, -4.0, 0.0, 1.0]]
    assert penalize(logits, history, 1.0) is logits


def test_penalty_without_history_changes_nothing() -> None:
    logits = torch.randn(2, 5)
    assert torch.equal(penalize(logits, torch.full((2, 3), -1), 3.0), logits)


def test_repetition_window_forgets_older_tokens() -> None:
    logits, history = torch.tensor([[1.0, 0.9, 0.0]]), torch.tensor([[0, 2, 2]])
    greedy = {"temperature": 0.0, "repetition_penalty": 2.0}
    assert sample(logits, Sampling(**greedy), [], history).item() == 1
    assert sample(logits, Sampling(**greedy, repetition_window=2), [], history).item() == 0
    assert sample(logits, Sampling(**greedy, repetition_window=3), [], history).item() == 1


def test_draws_follow_the_distribution() -> None:
    wanted = torch.tensor([0.1, 0.6, 0.05, 0.25], dtype=torch.float64)
    n = 4000
    generators = [row_generator(0, [i]) for i in range(n)]
    drawn = sample(wanted.log().expand(n, 4), PLAIN, generators)
    frequency = drawn.bincount(minlength=4) / n
    # five standard deviations
    assert ((frequency - wanted).abs() < 5 * (wanted * (1 - wanted) / n).sqrt()).all()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(5, 50)
    together = sample(logits, PLAIN, [row_generator(1, [i]) for i in range(5)])
    alone = [sample(logits[i : i + 1], PLAIN, [row_generator(1, [i])]).item() for i in range(5)]
    assert together.tolist() == alone


def test_streams_differ_by_seed_prompt_and_sample() -> None:
    streams = [row_generator(s, p, k) for s in (0, 1) for p in ([1, 2], [12]) for k in (0, 1)]
    assert len({torch.rand(1, generator=g).item() for g in streams}) == 8
    again = torch.rand(1, generator=row_generator(0, [1, 2], 1)).item()
    assert again == torch.rand(1, generator=row_generator(0, [1, 2], 1)).item()


def test_a_draw_never_takes_what_was_filtered_out() -> None:
    logits = torch.randn(200, 20).repeat(5, 1)
    sampling = Sampling(temperature=2.0, top_k=5, top_p=0.7, min_p=0.2)
    drawn = sample(logits, sampling, [row_generator(2, [i]) for i in range(1000)])
    probabilities, tokens = distribution(logits, sampling)
    allowed = torch.zeros_like(logits).scatter(1, tokens, probabilities)
    assert (allowed.gather(1, drawn[:, None]) > 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_stay_in_the_support(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *a, **k: torch.tensor(uniform, dtype=torch.float64))
    logits = torch.randn(50, 33)
    drawn = sample(logits, Sampling(temperature=1.0, top_k=0, top_p=0.5), [torch.Generator()] * 50)
    probabilities, tokens = distribution(logits, Sampling(temperature=1.0, top_k=0, top_p=0.5))
    support = (probabilities > 0).sum(1) - 1
    expected = tokens[:, 0] if uniform == 0.0 else tokens.gather(1, support[:, None])[:, 0]
    assert torch.equal(drawn, expected)


def test_greedy_is_the_argmax_and_draws_nothing() -> None:
    logits = torch.randn(4, 9)
    generator = row_generator(0, [1])
    before = generator.get_state()
    assert torch.equal(sample(logits, Sampling(temperature=0.0), [generator] * 4), logits.argmax(-1))
    assert torch.equal(generator.get_state(), before)


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    logits = torch.randn(4, 9) * 1e3
    drawn = sample(logits, Sampling(temperature=1e-30, top_k=0), [row_generator(0, [i]) for i in range(4)])
    assert torch.equal(drawn, logits.argmax(-1))


def test_bfloat16_logits_are_computed_with_in_float32() -> None:
    probabilities, _ = distribution(torch.randn(2, 9, dtype=torch.bfloat16), PLAIN)
    assert probabilities.dtype == torch.float32


def test_nan_logits_are_refused() -> None:
    with pytest.raises(BoutonError, match="NaN"):
        sample(torch.tensor([[0.0, torch.nan]]), PLAIN, [row_generator(0, [0])])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"repetition_window": -1},
        {"temperature": float("nan")},
    ],
)
def test_options_out_of_range_name_the_field(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]

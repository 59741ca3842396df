"""dendrite: its equations, the redundancy of linear coupling, padding, and the published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import BoutonError
from bouton.mechanisms import Vitals
from bouton.mechanisms.dendrite import DendriticMixer, Soma, fold
from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.context import Context

MODEL = {
    "vocab_size": 11,
    "num_layers": 1,
    "hidden_size": 28,
    "num_heads": 2,
    "max_seq_len": 16,
    "mixer_ratio": 2.0,
    "activation": "gelu",
}


def model_with(model: dict[str, Any] | None = None, **values: Any) -> Body:
    return build({"model": {**MODEL, **(model or {})}, "mechanism": {"dendrite": values}, "seed": 3}).double()


def mixer_of(body: Body) -> DendriticMixer:
    (mixer,) = [module for module in body.modules() if isinstance(module, DendriticMixer)]
    return mixer


def soma_of(body: Body) -> Soma:
    soma = mixer_of(body).soma.linear
    assert isinstance(soma, Soma)
    return soma


def mix(mixer: DendriticMixer, x: Tensor) -> Tensor:
    return mixer(x, Context(torch.arange(x.shape[1])[None]), None)[0]


def by_loops(mixer: DendriticMixer, x: Tensor) -> Tensor:
    """The definition for one vector, compartment by compartment."""
    soma, count, size = mixer.soma.linear, mixer.compartments, mixer.slice
    assert isinstance(soma, Soma)
    padded = torch.cat((x, x.new_zeros(count * size - x.shape[0])))
    h = []
    for k in range(count):
        drive = mixer.weight[k] @ padded[k * size : (k + 1) * size]
        h.append(torch.tanh(drive if mixer.bias is None else drive + mixer.bias[k]))
    parts = list(h)
    if soma.lateral is not None:
        coupled = [sum(soma.lateral[k, target] * h[k] for k in range(count)) for target in range(count)]
        parts += [torch.tanh(q) if soma.mode == "tanh" else q for q in coupled]
    hidden = soma.weight @ torch.cat(parts)
    hidden = hidden if soma.bias is None else hidden + soma.bias
    down = mixer.tail.down.linear
    y = down.weight @ torch.nn.functional.gelu(hidden)
    return y if down.bias is None else y + down.bias


@pytest.mark.parametrize("lateral", ["concat", "folded", "tanh", "off"])
@pytest.mark.parametrize(("compartments", "bias"), [(1, False), (3, True), (5, False)])
def test_equals_its_definition(lateral: str, compartments: int, bias: bool) -> None:
    mixer = mixer_of(model_with({"bias": bias}, lateral=lateral, compartments=compartments))
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(p.numel())))
    x = torch.randn(2, 3, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = mix(mixer, x)
    for b in range(2):
        for t in range(3):
            assert torch.allclose(got[b, t], by_loops(mixer, x[b, t]), atol=1e-13, rtol=0)


@pytest.mark.parametrize("compartments", [1, 2, 4, 5])
def test_linear_coupling_folds_into_half_of_the_soma(compartments: int) -> None:
    full, half = (model_with(lateral=mode, compartments=compartments) for mode in ("concat", "folded"))
    source, target = soma_of(full), soma_of(half)
    assert source.lateral is not None
    assert target.weight.numel() * 2 == source.weight.numel()
    folded = fold(source.weight.detach(), source.lateral.detach())
    # Built from the same seed both start as the same function, up to the rounding of float32 weights.
    assert torch.allclose(folded, target.weight, atol=1e-7, rtol=0)
    with torch.no_grad():
        target.weight.copy_(folded)
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    assert (full(tokens)[0] - half(tokens)[0]).abs().max() < 1e-12


def test_coupling_through_tanh_does_not_fold() -> None:
    bent, straight = (model_with(lateral=mode) for mode in ("tanh", "concat"))
    straight.load_state_dict(bent.state_dict())
    x = torch.randn(1, 4, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    assert (mix(mixer_of(bent), x) - mix(mixer_of(straight), x)).abs().max() > 1e-3


def test_lateral_starts_near_half_the_identity() -> None:
    body = model_with(compartments=6)
    lateral = soma_of(body).lateral
    assert lateral is not None
    noise = lateral.detach() - 0.5 * torch.eye(6)
    assert 0.05 < noise.std() < 0.15 and noise.abs().max() < 0.5


@pytest.mark.parametrize(("compartments", "size", "padding"), [(4, 7, 0), (5, 6, 2), (3, 10, 2), (1, 28, 0)])
def test_the_input_is_padded_where_it_does_not_divide(compartments: int, size: int, padding: int) -> None:
    mixer = mixer_of(model_with(compartments=compartments))
    assert (mixer.slice, mixer.padding) == (size, padding)
    assert mixer.weight.shape == (compartments, 56, size)


def test_a_compartment_without_input_is_refused() -> None:
    with pytest.raises(BoutonError, match=r"compartments = 12 leaves 2 of them without input .* use 10"):
        model_with(compartments=12)


def test_ratio_sets_the_width() -> None:
    assert mixer_of(model_with()).width == 56
    assert mixer_of(model_with(ratio=0.75)).width == 21


def test_branch_beside_the_soma_reads_the_compartments() -> None:
    body = model_with(compartments=3)
    sites = {socket.site: socket.in_features for socket in body.sockets("branch")}
    assert sites == {"attention_output": 28, "mixer_up": 3 * 56, "mixer_down": 56}


def test_vitals_lie_between_0_and_1() -> None:
    vitals = Vitals()
    model_with()(torch.zeros(1, 4, dtype=torch.int64), vitals=vitals)
    values = vitals.mean()
    assert 0 < values["dendrite/activity"] < 1 and 0 <= values["dendrite/saturation"] < 1


GPT2_SHAPE = {
    "vocab_size": 50304,
    "max_seq_len": 1024,
    "activation": "gelu",
    "embedding_norm": False,
    "qk_norm": False,
    "bias": False,
    "init_std": 0.02,
}
SMALL = {**GPT2_SHAPE, "num_layers": 4, "num_heads": 6, "hidden_size": 384, "norm": "layernorm", "position": "learned"}
LARGE = {**GPT2_SHAPE, "num_layers": 12, "num_heads": 12, "hidden_size": 768}


@pytest.mark.parametrize(
    ("model", "mechanism", "expected"),
    [
        (SMALL, {"dendrite": {"compartments": 2}, "oscillate": {}, "sparse": {}}, 83_451_280),
        (SMALL, {"dendrite": {"compartments": 4}, "oscillate": {}, "sparse": {}}, 121_200_064),
        (SMALL, {"oscillate": {}, "sparse": {}}, 45_702_528),
        (SMALL, {}, 26_791_296),
        (LARGE, {"oscillate": {}}, 123_697_920),
        ({**LARGE, "norm": "layernorm", "position": "learned"}, {}, 124_373_760),
    ],
    ids=["v1", "v1_four_compartments", "v2", "small_gelu", "v3", "large_gelu"],
)
def test_published_sizes_to_the_unit(model: dict[str, Any], mechanism: dict[str, Any], expected: int) -> None:
    assert build({"model": model, "mechanism": mechanism}, device="meta").num_parameters() == expected


@pytest.mark.parametrize("compartments", [2, 5, 4])
def test_flops_count_every_weight_twice(compartments: int) -> None:
    """Two per multiply-add, and each weight of a map is used once per token."""
    mixer = mixer_of(model_with(compartments=compartments, lateral="off"))
    counted = sum(m.flops_per_token(8) for m in mixer.modules() if callable(getattr(m, "flops_per_token", None)))  # type: ignore[operator]
    assert counted == 2 * sum(p.numel() for p in mixer.parameters())

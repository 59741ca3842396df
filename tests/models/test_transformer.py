from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import bouton
from bouton.errors import ConfigError
from bouton.models import Transformer, TransformerConfig, initialize

SMALL = {"vocab_size": 31, "num_layers": 2, "hidden_size": 24, "num_heads": 4, "max_seq_len": 32}


def make(seed: int = 0, **options) -> Transformer:
    model = Transformer(TransformerConfig(**{**SMALL, **options}))
    return initialize(model, seed).double()


def tokens(batch: int = 2, length: int = 13) -> torch.Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(5))


def by_hand(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """The same transformer written from the papers, one head and one query at a time."""
    c, weights = model.config, dict(model.named_parameters())

    def linear(x, name):
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(x, name):
        if c.norm == "layernorm":
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            y = x * weights[f"{name}.weight"]
            return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    def unit(x):
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    def rope(x, position):  # pairs (i, i + D/2) turn by position / base^(2 i / D)
        half = x.shape[-1] // 2
        angle = position * c.rope_base ** (-torch.arange(half, dtype=x.dtype) / half)
        z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag), -1)

    rows = []
    for row in ids:
        x = weights["embedding.weight"][row]
        if c.position == "learned":
            x = x + weights["position.weight"][: len(row)]
        if c.embedding_norm:
            x = unit(x)
        for i in range(c.num_layers):
            h = norm(x, f"layers.{i}.attention_norm")
            q, k, v = (linear(h, f"layers.{i}.attention.{n}") for n in ("query", "key", "value"))
            heads = []
            for head in range(c.num_heads):
                own, d = head // (c.num_heads // c.kv_heads), c.head_size
                qh = q[:, head * d : (head + 1) * d]
                kh, vh = k[:, own * d : (own + 1) * d], v[:, own * d : (own + 1) * d]
                if c.qk_norm:
                    qh, kh = unit(qh), unit(kh)
                out = []
                for t in range(len(row)):
                    low = 0 if c.layer_window(i) is None else max(0, t - c.layer_window(i) + 1)
                    query, keys = qh[t], kh[low : t + 1]
                    if c.position == "rope":
                        query = rope(query, t)
                        keys = torch.stack([rope(keys[j], low + j) for j in range(len(keys))])
                    out.append(torch.softmax(keys @ query / math.sqrt(d), 0) @ vh[low : t + 1])
                heads.append(torch.stack(out))
            x = x + linear(torch.cat(heads, -1), f"layers.{i}.attention.output.linear")
            h = norm(x, f"layers.{i}.mixer_norm")
            up = linear(h, f"layers.{i}.mixer.part.up.linear")
            hidden = {
                "gelu": F.gelu,
                "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
                "relu2": lambda x: x.clamp_min(0) ** 2,
                "silu": lambda x: x * torch.sigmoid(x),
            }.get(c.activation, lambda x: x)(up)
            if c.activation == "swiglu":
                hidden = F.silu(linear(h, f"layers.{i}.mixer.part.gate")) * up
            x = x + linear(hidden, f"layers.{i}.mixer.part.tail.down.linear")
        x = norm(x, "norm")
        logits = x @ (weights["embedding.weight"] if c.tied_embeddings else weights["head.weight"]).T
        rows.append(c.logit_softcap * torch.tanh(logits / c.logit_softcap) if c.logit_softcap else logits)
    return torch.stack(rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_kv_heads": 2, "activation": "swiglu"},
        {"num_kv_heads": 1, "window": 4, "activation": "gelu", "tied_embeddings": False},
        {"window": 5, "full_attention_every": 2, "logit_softcap": 2.0, "activation": "silu"},
        {"position": "none", "qk_norm": False, "head_dim": 10},
        {
            "norm": "layernorm",
            "position": "learned",
            "bias": True,
            "activation": "gelu_tanh",
            "qk_norm": False,
            "embedding_norm": False,
        },
    ],
    ids=lambda o: "+".join(o) or "default",
)
def test_equals_a_transformer_written_by_hand(options):
    model = make(**options)
    torch.testing.assert_close(model(tokens())[0], by_hand(model, tokens()), rtol=1e-10, atol=1e-10)


def test_gpt2_shape_has_gpt2_parameters():
    cfg = bouton.compose("model=gpt2", "model.vocab_size=50257")
    assert bouton.build(cfg, device="meta").num_parameters() == 124_439_808


def test_rotary_positions_are_not_permutation_invariant():
    # Without positions a single block's last output ignores the order of the past; with rotary positions it must not.
    ids = tokens(1)
    shuffled = torch.cat((ids[:, :-1].flip(1), ids[:, -1:]), 1)
    for position, invariant in (("none", True), ("rope", False)):
        model = make(num_layers=1, position=position)
        same = torch.allclose(model(ids)[0][:, -1], model(shuffled)[0][:, -1], atol=1e-9)
        assert same == invariant


def test_rope_beyond_max_seq_len_and_learned_positions_refuse():
    long = tokens(1, 40)
    assert make()(long)[0].shape == (1, 40, 31)
    model = make(position="learned")
    with pytest.raises(ConfigError, match="max_seq_len = 32"):
        model(long)
    _, state = model(tokens(1, 30))
    with pytest.raises(ConfigError, match="position 32"):
        model(tokens(1, 3), state)


def test_window_bounds_the_state():
    _, state = make(window=4)(tokens())
    assert state["layers"]["0"]["attention"]["k"].shape[2] == 3
    assert state["segments"].shape[1] == 3


def test_compiles_without_graph_breaks():
    model = make().float()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(tokens())[0], model(tokens())[0], rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only():
    model = make(dropout=0.5)
    model.train()
    assert not torch.equal(model(tokens())[0], model(tokens())[0])
    model.eval()
    assert torch.equal(model(tokens())[0], model(tokens())[0])


def test_flops_count_matmuls_and_attention():
    model = make()
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embedding" not in n)
    head, attention = 24 * 31, 2 * 24 * 16  # per block: q k^T and p v over half the keys on average
    assert model.flops_per_token(16) == 2 * (matrices + head) + 2 * attention


def test_flops_of_a_window_do_not_grow_with_the_square_of_the_length():
    plain, windowed = make(), make(window=4)
    # per block and head dimension 4 FLOPs for each of 16 / 2, or 4 - 4^2 / (2 * 16), keys
    assert plain.flops_per_token(16) - windowed.flops_per_token(16) == 2 * 4 * 24 * (8 - 3.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 25}, "not divisible by num_heads = 4"),
        ({"num_kv_heads": 3}, "does not divide"),
        ({"head_dim": 7}, "odd"),
        ({"activation": "sigmoid"}, "gelu or"),
        ({"num_layers": 0}, "an integer >= 1"),
        ({"full_attention_every": 2}, "without window"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.tensor([[3, 31]]), {}, "id 31, but this body's ids go from 0 to 30"),
        (torch.tensor([[3, -1]]), {}, "id -1, but this body's ids go from 0 to 30"),
        (torch.tensor([[0.5]]), {}, "int64 or int32, got float32"),
        (torch.tensor([3]), {}, r"\(B, T\)"),
        (torch.tensor([[3, 4]]), {"starts": torch.ones(1, 3, dtype=torch.bool)}, r"\(1, 2\), got \(1, 3\)"),
    ],
)
def test_bad_tokens_are_one_line(ids, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()(ids, **options)
    assert "\n" not in str(caught.value)


def test_a_state_of_another_batch_size_is_one_line():
    model = make()
    _, state = model(tokens(2))
    with pytest.raises(ValueError, match="state is of a batch of 2, but tokens has 3 rows"):
        model(tokens(3, 1), state)


def test_samples_must_be_one_per_row():
    body = bouton.build(bouton.compose("model=tiny", "model.vocab_size=31"))
    with pytest.raises(ValueError, match=r"samples must be one per row, \(2,\), got \(3,\)"):
        body(torch.zeros(2, 4, dtype=torch.int64), samples=torch.arange(3))

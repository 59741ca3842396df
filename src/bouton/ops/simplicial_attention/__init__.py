"""2-simplicial attention: a query weighs pairs of keys by a trilinear form and reads the product of their values.

    A_ij  = sum_d q_td k1_id k2_jd / sqrt(D)          i in (t - w1, t], j in (t - w2, t]
    out_t = sum_ij softmax_ij(A) (v1_i * v2_j)

Clift, Doryn, Murfet and Wallbridge 2019 (logic and the 2-simplicial transformer); the windows and the elementwise
product of the values as in Roy et al. 2025 (fast and simplex). Both keys carry no rotary positions: rotating all three
factors of the form by their positions would not make it depend on distances alone, as it does for two.
"""

from __future__ import annotations

# The submodule `torch` takes that name in this package, so only names are imported from the library.
from torch import Tensor, autocast, cat, float32, promote_types
from torch import bool as torch_bool
from torch.nn.functional import pad

from bouton.errors import KernelError
from bouton.ops.backends import register_backend, select
from bouton.ops.simplicial_attention.reference import simplicial_attention_reference
from bouton.ops.simplicial_attention.torch import documents, last, seen, simplicial_attention_torch

__all__ = ["simplicial_attention", "simplicial_attention_reference", "simplicial_weights"]

OP = "simplicial_attention"
register_backend(OP, "torch")
State = dict[str, Tensor]


def simplicial_attention(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    w1: int,
    w2: int,
    *,
    starts: Tensor | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    state: State | None = None,
    backend: str = "auto",
) -> tuple[Tensor, State]:
    """Causal 2-simplicial attention over windows, within documents, with grouped queries.

    Args:
        q: (B, H, T, D).
        k1, v1, k2, v2: (B, H_kv, T, D), H_kv divides H; of the T new tokens alone.
        w1, w2: tokens that the first and the second window hold, the query's own included.
        starts: (B, T) bool, True at the first token of a document; None: no document begins here.
        bias1, bias2: (B or 1, H or 1, T, w1) and (B or 1, H or 1, T, w2), added to the logits of a pair by the place of
            its first and second key in the window, oldest first; None: nothing.
        state: what an earlier call returned; None: a fresh sequence.
        backend: ``auto`` or the name of a backend.

    Returns:
        (B, H, T, D) in the dtype of ``q``, computed in float32 or better, and the state after the last token:
        ``keys1``, ``values1`` (B, H_kv, w1 - 1, D), ``keys2``, ``values2`` (B, H_kv, w2 - 1, D), 0 where there are
        none, and ``valid`` (B, max(w1, w2) - 1) bool, which of the last tokens belong to the last document.

    Raises:
        KernelError: a shape that does not fit, a window below 1, or a backend that cannot run.
    """
    _check(q, (k1, v1, k2, v2), w1, w2, starts, (bias1, bias2))
    select(OP, q.device, backend)
    out, _, after = _run(q, k1, v1, k2, v2, w1, w2, starts, bias1, bias2, state)
    return out, after


def simplicial_weights(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    w1: int,
    w2: int,
    *,
    starts: Tensor | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    state: State | None = None,
) -> Tensor:
    """The weights of the pairs (B, H, T, <= w2, <= w1), oldest keys first; arguments as above."""
    return _run(q, k1, k1, k2, k2, w1, w2, starts, bias1, bias2, state)[1]


def _run(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    w1: int,
    w2: int,
    starts: Tensor | None,
    bias1: Tensor | None,
    bias2: Tensor | None,
    state: State | None,
) -> tuple[Tensor, Tensor, State]:
    batch, _, tokens, _ = q.shape
    longest = max(w1, w2) - 1
    valid = q.new_zeros(batch, longest, dtype=torch_bool) if state is None else state["valid"]
    document = documents(starts, valid, tokens)
    # A fresh sequence has no more keys than tokens, so its windows need be no wider.
    n1, n2 = (w if state is not None else min(w, tokens) for w in (w1, w2))
    past = state or {}
    keys1, values1 = _joined(past.get("keys1"), k1, n1), _joined(past.get("values1"), v1, n1)
    keys2, values2 = _joined(past.get("keys2"), k2, n2), _joined(past.get("values2"), v2, n2)
    precision = promote_types(q.dtype, float32)
    with autocast(q.device.type, enabled=False):
        out, weights = simplicial_attention_torch(
            q.to(precision),
            keys1.to(precision),
            values1.to(precision),
            keys2.to(precision),
            values2.to(precision),
            seen(document, n1, tokens),
            seen(document, n2, tokens),
            None if bias1 is None else bias1[..., w1 - n1 :].to(precision),
            None if bias2 is None else bias2[..., w2 - n2 :].to(precision),
        )
    after = {
        "keys1": last(keys1, document, w1 - 1),
        "values1": last(values1, document, w1 - 1),
        "keys2": last(keys2, document, w2 - 1),
        "values2": last(values2, document, w2 - 1),
        "valid": (document == document[:, -1:])[:, document.shape[1] - longest :],
    }
    return out.to(q.dtype), weights, after


def _joined(past: Tensor | None, new: Tensor, window: int) -> Tensor:
    """(B, H_kv, window - 1 + T, D)."""
    return pad(new, (0, 0, window - 1, 0)) if past is None else cat((past.to(new.dtype), new), dim=2)


def _check(
    q: Tensor,
    others: tuple[Tensor, ...],
    w1: int,
    w2: int,
    starts: Tensor | None,
    biases: tuple[Tensor | None, Tensor | None],
) -> None:
    if q.dim() != 4 or q.shape[2] == 0:
        raise KernelError(f"{OP}: q {tuple(q.shape)} must be (B, H, T, D) with T >= 1")
    batch, heads, tokens, dim = q.shape
    kv_heads = others[0].shape[1] if others[0].dim() == 4 else 0
    for name, x in zip(("k1", "v1", "k2", "v2"), others, strict=True):
        if x.shape != (batch, kv_heads, tokens, dim) or not kv_heads or heads % kv_heads:
            raise KernelError(
                f"{OP}: {name} {tuple(x.shape)} must be (B, H_kv, T, D) = ({batch}, a divisor of {heads}, "
                f"{tokens}, {dim}), as the others"
            )
    for label, window, bias in (("1", w1, biases[0]), ("2", w2, biases[1])):
        if window < 1:
            raise KernelError(f"{OP}: w{label} = {window} must be at least 1")
        if bias is None:
            continue
        shares = bias.dim() == 4 and bias.shape[0] in (1, batch) and bias.shape[1] in (1, heads)
        if not shares or bias.shape[2:] != (tokens, window):
            raise KernelError(
                f"{OP}: bias{label} {tuple(bias.shape)} must be ({batch} or 1, {heads} or 1, {tokens}, {window})"
            )
    if starts is not None and starts.shape != (batch, tokens):
        raise KernelError(f"{OP}: starts {tuple(starts.shape)} must be (B, T) = {(batch, tokens)}")

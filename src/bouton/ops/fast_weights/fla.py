"""Fast weights on a GPU by the kernels of flash-linear-attention (package ``fla-core``), rules hebb and delta.

Its functions write, then read: o_t = q_t h_t. We read, then write, so the query of t + 1 is asked at t, and the first
one asks the state at the start. What they compute, and what is made of it:

    chunk_gla                 h_t = a h_{t-1} + k_t (x) v_t
                              F = h where a = rho_f and eta k stands for k
    chunk_gated_delta_rule    h_t = a h_{t-1} + b_t k_t (x) (v_t - k_t a h_{t-1})
                              F = rho_f h where a = rho_f and b = eta / rho_f

so that v is passed as it is, and only what is narrow is scaled. A decay per key dimension (gla) is more than a decay
per head (simple_gla) needs; but the backward pass of the latter is wrong on Hopper with some releases of Triton, and
keys are narrow here. A document is a sequence of its own (cu_seqlens): no decay that is merely small stands for zero.

Not by these kernels: S, whose read is a difference of two linear attentions, divided by rho_s - rho_f. Measured in
float32, gradients are off by 3e-6 where the time constants are 20 and 60 tokens, by 2e-4 at 20 and 25, and not numbers
where they are equal; and both are learned. Nor Oja's rule: its decay differs between the columns of F.

Inputs, products and states are float32. Values of a tensor ``rho_f`` are not checked, since that would wait for the
device: at 0 the results are not numbers; below 0.1 gradients of ``rho_f`` lose digits. Documents do wait for it, once
per call. ``torch.compile`` leaves its graph here, as these functions ask it to.
Sources: Yang et al. 2024 (gated linear attention; gated delta networks).
"""

from __future__ import annotations

import importlib
import os
import re
from functools import cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.ops import triton_runtime

WIDEST_RANK = 256
LEAST_DECAY = 0.1
OLDEST = (0, 6)  # the first release whose gated delta rule lets the chunk be chosen
CHUNK = 32  # with 64 the gated delta rule solves its triangular systems in TF32, whatever it is told
DELTA_IS_WRONG = ((3, 4, 0), (3, 7, 1))  # releases of Triton, the second excluded


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


@cache
def _load() -> SimpleNamespace | str:
    """The two functions, or why there are none; imported late, since an import of this module must not need them."""
    try:
        package = importlib.import_module("fla")
        gla, delta = (importlib.import_module(f"fla.ops.{name}") for name in ("gla", "gated_delta_rule"))
    except (ImportError, AttributeError, RuntimeError) as error:
        return f"flash-linear-attention is not installed, or not usable here (pip install fla-core): {error}"
    if _numbers(package.__version__)[:2] < OLDEST:
        return f"needs fla-core {'.'.join(map(str, OLDEST))} or later, not {package.__version__}"
    if triton_runtime.interpreted():
        importlib.import_module("bouton.ops.fast_weights.fla_interpreter").prepare()
    return SimpleNamespace(gla=gla.chunk_gla, delta=delta.chunk_gated_delta_rule)


@cache
def why_not() -> str | None:
    """Why these kernels cannot run on this machine; None if they can."""
    if (reason := triton_runtime.why_not()) is not None:
        return reason
    found = _load()
    return found if isinstance(found, str) else None


def lacks(rule: str, slow: bool) -> str | None:
    """What of the recurrence these kernels do not have; ``slow``: whether there is an S."""
    if rule == "oja":
        return "has no kernel for rule = oja, whose decay differs between the columns of F; it has hebb and delta"
    if slow:
        return "has no kernel for the consolidated part S: eta_s must be the number 0, and the state without 'slow'"
    return None


def refuses(q: Tensor, v: Tensor, rho_f: Tensor | float, *, rule: str, slow: bool) -> str | None:
    """Why the kernels cannot execute a call with these arguments; None if they can. ``slow``: whether there is an S."""
    if (reason := lacks(rule, slow)) is not None:
        return reason
    if torch.float64 in (q.dtype, v.dtype):
        return "computes in float32, not in float64"
    if 0 in (*q.shape, *v.shape):
        return "needs at least one token, of at least one number"
    if q.shape[-1] > WIDEST_RANK:
        return f"takes a rank of at most {WIDEST_RANK}, not {q.shape[-1]}"
    if isinstance(rho_f, (int, float)) and rho_f < LEAST_DECAY:
        return f"takes rho_f of at least {LEAST_DECAY}, not {rho_f}: it divides by it"
    return None


@cache
def lacks_gradients(rule: str) -> str | None:
    """Why there is no backward pass on this machine; None if there is."""
    if rule != "delta" or triton_runtime.interpreted() or not torch.cuda.is_available():
        return None
    version = importlib.import_module("triton").__version__
    first, fixed = DELTA_IS_WRONG
    if torch.cuda.get_device_capability()[0] == 9 and first <= _numbers(version) < fixed:
        # fla raises by itself there (its issue 640), but only in the middle of a backward pass.
        return f"has no backward pass for rule = delta on Hopper with Triton {version}; from 3.7.1 on it has"
    return None


def _functions() -> SimpleNamespace:
    found = _load()
    if isinstance(found, str):
        raise ImportError(found)
    # Where a kernel does not say otherwise, as these do not, Triton rounds float32 to TF32, three digits. The sum of
    # three such products is nearly float32. The backward pass runs in a thread of its own: only the process can know.
    os.environ.setdefault("TRITON_F32_DEFAULT", "tf32x3")
    return found


@torch.compiler.disable
def fast_weights_fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    *,
    rho_f: Tensor,
    rule: str,
    fast: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Read (B, H, T, dv) and final F, as :func:`bouton.ops.fast_weights.torch.fast_weights_torch` without S.

    Raises:
        ImportError: flash-linear-attention is not installed, or too old.
    """
    with torch.autocast(q.device.type, enabled=False):
        alive = None if starts is None else ~starts
        before = fast if alive is None else fast * alive[:, 0, None, None, None]
        first = q[:, :, :1] @ before
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, H, r | dv), as all that follows
        ahead = F.pad(q[:, 1:], (0, 0, 0, 0, 0, 1))
        if alive is not None:
            ahead = ahead * F.pad(alive[:, 1:], (0, 1))[..., None, None]
        rate, decay = eta.transpose(1, 2), rho_f.view(1, 1, -1)
        if rule == "delta":
            scale = rho_f.view(-1, 1, 1)
            inputs = {"q": ahead * decay[..., None], "k": k, "v": v, "beta": rate / decay}
            inputs["g"] = decay.log().expand(rate.shape)
            after, final = _over_documents("delta", inputs, before / scale, starts)
            final = final * scale
        else:
            inputs = {"q": ahead, "k": k * rate[..., None], "v": v}
            inputs["g"] = decay[..., None].log().expand(k.shape)
            after, final = _over_documents("gla", inputs, before, starts)
        return torch.cat((first, after[:, :-1].transpose(1, 2)), dim=2), final


def _over_documents(
    name: str, inputs: dict[str, Tensor], before: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One of the functions, every document from a zero state of its own; (B, T, H, dv) and the last state of a row."""
    function = getattr(_functions(), name)
    options = {"scale": 1.0, "output_final_state": True}
    if name == "delta":
        options["chunk_size"] = CHUNK
    if starts is None:
        out, final = function(**inputs, initial_state=before, **options)
        return out, final
    rows, tokens = starts.shape
    begins = starts.clone()
    begins[:, 0] = True  # rows lie one after the other
    document = begins.flatten().cumsum(0).view(rows, tokens) - 1
    borders = F.pad(begins.flatten().nonzero().squeeze(-1), (0, 1), value=rows * tokens)
    # A row goes on with its state unless it starts with a document: then `before` is zero already.
    entering = before.new_zeros(len(borders) - 1, *before.shape[1:]).index_copy(0, document[:, 0], before)
    flat = {key: x.flatten(0, 1).unsqueeze(0) for key, x in inputs.items()}
    out, final = function(**flat, initial_state=entering, cu_seqlens=borders, **options)
    return out.view(rows, tokens, *out.shape[2:]), final.index_select(0, document[:, -1])

"""Causal multi-head attention with sockets for its core, its keys, its scores, and its output map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.models import blockwise
from bouton.models.context import Context
from bouton.models.layers import Linear, rotate
from bouton.models.sockets import BranchedLinear, ExclusiveSocket, ListSocket, State

if TYPE_CHECKING:
    from bouton.models.transformer import TransformerConfig


def visible_keys(seq_len: int, window: int | None) -> float:
    """Keys that a query of a sequence sees on average: the causal half, or less with a window."""
    width = seq_len if window is None else min(window, seq_len)
    return width * (1 - width / (2 * seq_len))


class DotProductCore(nn.Module):
    """softmax(q k^T / sqrt(D) + bias) v by torch's fused kernels (Vaswani et al. 2017). No state of its own.

    On a CPU documents and windows are computed in blocks (:mod:`.blockwise`); with a bias, cached keys, under
    ``torch.compile`` and on other devices the kernel gets the mask as a whole.
    """

    def __init__(self, num_heads: int, head_dim: int, window: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.window = window

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ctx: Context,
        state: State | None,
        *,
        bias: Tensor | None,
        window: int | None,
    ) -> tuple[Tensor, State]:
        if bias is None and (blocks := ctx.blocks(window, k.shape[2], q)) is not None:
            return blockwise.attention(q, k, v, blocks), {}
        mask = ctx.mask(window, k.shape[2])
        if bias is not None:
            if mask is None:
                t = q.shape[2]
                mask = torch.ones(t, t, dtype=torch.bool, device=q.device).tril_()[None, None]
            mask = bias.to(q.dtype).masked_fill(~mask, -torch.inf)
        causal = mask is None
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa), {}

    def flops_per_token(self, seq_len: int) -> float:
        # q k^T and p v, two FLOPs per multiply-add
        return 4.0 * self.num_heads * self.head_dim * visible_keys(seq_len, self.window)


class Attention(nn.Module):
    """Multi-head attention: GQA, QK-norm, RoPE, sliding window, KV cache as explicit state."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        dim, heads, kv_heads, head_dim = config.hidden_size, config.num_heads, config.kv_heads, config.head_size
        self.num_heads, self.num_kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.rope_base = config.rope_base if config.position == "rope" else None
        self.qk_norm = config.qk_norm
        self.window = config.layer_window(layer)
        std = config.std(dim)
        self.query = Linear(dim, heads * head_dim, bias=config.bias, std=std)
        self.key = Linear(dim, kv_heads * head_dim, bias=config.bias, std=std)
        self.value = Linear(dim, kv_heads * head_dim, bias=config.bias, std=std)
        self.keys = ListSocket("keys", layer, num_heads=kv_heads, head_dim=head_dim)
        self.scores = ListSocket("attention_scores", layer, num_heads=heads)
        self.core = ExclusiveSocket(
            "attention_core",
            layer,
            DotProductCore(heads, head_dim, self.window),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            window=self.window,
            rope_base=self.rope_base,  # None: queries and keys are not rotated
            # The largest |q k / sqrt(D)| that can occur; None: unbounded.
            max_logit=head_dim**0.5 if self.qk_norm else None,
        )
        self.output = BranchedLinear(
            heads * head_dim,
            dim,
            bias=config.bias,
            site="attention_output",
            layer=layer,
            std=config.residual_std(heads * head_dim),
        )

    def forward(self, x: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, hidden) -> (B, T, hidden) and the state: keys, values (B, H_kv, T_key, D) and the parts' own."""
        batch, t, _ = x.shape
        q = self.query(x).view(batch, t, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.key(x).view(batch, t, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.value(x).view(batch, t, self.num_kv_heads, self.head_dim).transpose(1, 2)
        if self.qk_norm:
            q, k = F.rms_norm(q, (self.head_dim,)), F.rms_norm(k, (self.head_dim,))
        if self.rope_base is not None:
            cos, sin = ctx.rotation(self.head_dim, self.rope_base, x.dtype)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)

        before: State = {} if state is None else state
        after: State = {}
        for name, part in self.keys.items():
            k, part_state = part(k, ctx, before.get("keys_" + name))
            if part_state:
                after["keys_" + name] = part_state
        if state is not None:
            k, v = torch.cat((state["k"], k), dim=2), torch.cat((state["v"], v), dim=2)

        bias: Tensor | None = None
        for _, part in self.scores.items():
            term = part(ctx, self.num_heads, t, k.shape[2])
            bias = term if bias is None else bias + term
        context, core_state = self.core(q, k, v, ctx, before.get("core"), bias=bias, window=self.window)
        y, branch_state = self.output(
            context.transpose(1, 2).reshape(batch, t, self.num_heads * self.head_dim), ctx, before.get("output")
        )
        if core_state:
            after["core"] = core_state
        if branch_state:
            after["output"] = branch_state
        # No later query sees a key that has left the window.
        keep = k.shape[2] if self.window is None else min(k.shape[2], self.window - 1)
        after["k"], after["v"] = k[:, :, k.shape[2] - keep :], v[:, :, v.shape[2] - keep :]
        return y, after

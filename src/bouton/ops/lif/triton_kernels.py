"""Neurons by themselves in Triton: one program per block of neurons of one sequence, a neuron per lane, along time.

Time is cut into chunks of K tokens, whose inputs are all fetched before the first is used: a step then does not wait
for memory. Of the membrane potentials one per chunk is kept, and the backward pass computes the others anew from x: in
bfloat16 and with K = 16 both passes move 2 + 2 + 0.25 and 2 + 0.25 + 2 + 2 bytes per neuron and token, instead of 16
with all potentials stored in float32 (which spikes need: s = [u > theta]). Spikes are not read back at all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bouton.ops.lif.triton_neuron import decayed, into_s, into_theta, into_u, membrane, slope, spike


@triton.jit
def begins(starts, token, tokens):
    """Whether a document begins at ``token``; none does behind the end."""
    return tl.load(starts + token, mask=token < tokens, other=0) != 0


@triton.jit
def forward(
    x, beta, theta, gain, u0, s0, starts, spikes, last, kept, tokens, width,
    RESET: tl.constexpr, GAIN: tl.constexpr, STARTS: tl.constexpr, SAVE: tl.constexpr, BH: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """Spikes (B, T, H), the last u (B, H), and if ``SAVE`` the u before each chunk, ``kept`` (B, chunks, H)."""
    sequence = tl.program_id(1).to(tl.int64)
    neurons = tl.program_id(0) * BH + tl.arange(0, BH)
    inside = neurons < width
    limit = tl.where(inside, tokens, 0)  # how many tokens a lane has
    decay = tl.load(beta + neurons, mask=inside, other=0.0)
    threshold = tl.load(theta + neurons, mask=inside, other=0.0)
    factor = tl.load(gain + neurons, mask=inside, other=0.0) if GAIN else 1.0
    u = tl.load(u0 + sequence * width + neurons, mask=inside, other=0.0)
    s = tl.load(s0 + sequence * width + neurons, mask=inside, other=0.0)
    ended = u
    at = sequence * tokens * width + neurons
    slot = kept + sequence * tl.cdiv(tokens, K) * width + neurons
    for begin in range(0, tokens, K):
        if SAVE:
            tl.store(slot, u, mask=inside)
            slot += width
        currents = ()
        firsts = ()
        for i in tl.static_range(K):
            currents = currents + (tl.load(x + at + i * width, mask=begin + i < limit, other=0.0).to(tl.float32),)
            if STARTS:
                firsts = firsts + (begins(starts + sequence * tokens, begin + i, tokens),)
        for i in tl.static_range(K):
            if STARTS:
                u = tl.where(firsts[i], 0.0, u)
                s = tl.where(firsts[i], 0.0, s)
            current = currents[i]
            if GAIN:
                current = factor * current
            u = membrane(u, s, current, decay, threshold, RESET)
            s = spike(u, threshold)
            tl.store(spikes + at + i * width, s.to(spikes.dtype.element_ty), mask=begin + i < limit)
            ended = tl.where(begin + i + 1 == limit, u, ended)
        at += K * width
    tl.store(last + sequence * width + neurons, ended, mask=inside)


@triton.jit
def backward(
    x, beta, theta, gain, s0, starts, kept, spikes_bar, last_bar, x_bar, u0_bar, s0_bar, sums, alpha, tokens, width,
    RESET: tl.constexpr, GAIN: tl.constexpr, STARTS: tl.constexpr, SURROGATE: tl.constexpr, DETACH: tl.constexpr,
    BH: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Gradients of x, u0 and s0, and those of beta, theta and gain by this sequence alone: ``sums`` (3, B, H).

    With G_t = dL/ds_t and delta_t = dL/du_t: delta_t = slope(u_t - theta) G_t + into_u(delta_{t+1}).
    """
    sequence = tl.program_id(1).to(tl.int64)
    neurons = tl.program_id(0) * BH + tl.arange(0, BH)
    inside = neurons < width
    limit = tl.where(inside, tokens, 0)  # how many tokens a lane has
    decay = tl.load(beta + neurons, mask=inside, other=0.0)
    threshold = tl.load(theta + neurons, mask=inside, other=0.0)
    factor = tl.load(gain + neurons, mask=inside, other=0.0) if GAIN else 1.0
    heard = tl.load(s0 + sequence * width + neurons, mask=inside, other=0.0)
    ending = tl.load(last_bar + sequence * width + neurons, mask=inside, other=0.0)
    of_u = tl.zeros((BH,), tl.float32)  # what the later tokens ask of u_t and s_t
    of_s = tl.zeros((BH,), tl.float32)
    of_beta = tl.zeros((BH,), tl.float32)
    of_theta = tl.zeros((BH,), tl.float32)
    of_gain = tl.zeros((BH,), tl.float32)
    chunks = tl.cdiv(tokens, K)
    for back in range(chunks):
        chunk = chunks - 1 - back
        begin = chunk * K
        at = (sequence * tokens + begin) * width + neurons
        u = tl.load(kept + (sequence * chunks + chunk) * width + neurons, mask=inside, other=0.0)
        s = tl.where(chunk == 0, heard, spike(u, threshold))
        currents = ()
        upstream = ()
        firsts = ()
        for i in tl.static_range(K):
            mask = begin + i < limit
            currents = currents + (tl.load(x + at + i * width, mask=mask, other=0.0).to(tl.float32),)
            upstream = upstream + (tl.load(spikes_bar + at + i * width, mask=mask, other=0.0).to(tl.float32),)
            if STARTS:
                firsts = firsts + (begins(starts + sequence * tokens, begin + i, tokens),)
        before_u = ()  # what a token starts from
        before_s = ()
        after_u = ()
        for i in tl.static_range(K):
            if STARTS:
                u = tl.where(firsts[i], 0.0, u)
                s = tl.where(firsts[i], 0.0, s)
            before_u = before_u + (u,)
            before_s = before_s + (s,)
            current = currents[i]
            if GAIN:
                current = factor * current
            u = membrane(u, s, current, decay, threshold, RESET)
            u = tl.where(begin + i < limit, u, 0.0)  # finite behind the end, where all gradients are 0
            s = spike(u, threshold)
            after_u = after_u + (u,)
        # A chunk is summed by itself: long sums of float32 numbers lose less that way.
        chunk_beta = tl.zeros((BH,), tl.float32)
        chunk_theta = tl.zeros((BH,), tl.float32)
        chunk_gain = tl.zeros((BH,), tl.float32)
        for i in tl.static_range(K - 1, -1, -1):
            by_spike = slope(after_u[i] - threshold, alpha, SURROGATE) * (upstream[i] + of_s)
            delta = by_spike + tl.where(begin + i + 1 == limit, ending, of_u)
            chunk_beta += delta * decayed(before_u[i], before_s[i], threshold, RESET)
            chunk_theta += delta * into_theta(before_s[i], decay, RESET) - by_spike
            of_u = into_u(delta, before_s[i], decay, RESET)
            of_s = into_s(delta, before_u[i], decay, threshold, RESET, DETACH)
            if GAIN:
                chunk_gain += delta * currents[i]
                delta = factor * delta
            tl.store(x_bar + at + i * width, delta.to(x_bar.dtype.element_ty), mask=begin + i < limit)
            if STARTS:
                of_u = tl.where(firsts[i], 0.0, of_u)
                of_s = tl.where(firsts[i], 0.0, of_s)
        of_beta += chunk_beta
        of_theta += chunk_theta
        of_gain += chunk_gain
    at = sequence * width + neurons
    plane = tl.num_programs(1).to(tl.int64) * width
    tl.store(u0_bar + at, of_u, mask=inside)
    tl.store(s0_bar + at, of_s, mask=inside)
    tl.store(sums + at, of_beta, mask=inside)
    tl.store(sums + plane + at, of_theta, mask=inside)
    if GAIN:
        tl.store(sums + 2 * plane + at, of_gain, mask=inside)

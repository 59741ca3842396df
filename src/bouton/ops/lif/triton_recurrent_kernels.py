"""Neurons that hear each other's last spikes, in Triton: tiles of sequences (axis 0) and neurons (axis 1).

``walk`` and ``walk_back`` go through all tokens in one launch, where a program holds the whole map W of its sequences;
``step`` and ``step_back`` do one token, between matrix products of torch's. The potentials kept for the backward pass
are those before each token and, as the last one, that after all, (B, T + 1, H).

The map enters a tensor core as a sum of three bfloat16 parts, which have its 24 bits; spikes are exact in bfloat16, so
every product is. What flows back is split likewise, and the products of which less than a float32 could hold are left
out.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from bouton.ops.lif.triton_neuron import decayed, into_s, into_theta, into_u, membrane, slope, spike

COMPILED = tl.constexpr(not knobs.runtime.interpret)


@triton.jit
def parts(x):
    """Three bfloat16 numbers whose sum is x."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def plus_product(total, a, b):
    """total + a @ b in float32. The interpreter keeps bfloat16 as bits, which it would multiply as integers."""
    if COMPILED:
        return tl.dot(a, b, total)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)


@triton.jit
def per_neuron(pointer, neurons, inside):
    return tl.load(pointer + neurons, mask=inside, other=0.0)[None, :]


@triton.jit
def begins(starts, sequences, batch, tokens, t):
    """Which sequences (rows, 1) begin a document at token t."""
    return (tl.load(starts + sequences.to(tl.int64) * tokens + t, mask=sequences < batch, other=0) != 0)[:, None]


@triton.jit
def walk(
    x, w_rec, beta, theta, gain, u0, s0, starts, spikes, kept, batch, tokens, width,
    RESET: tl.constexpr, GAIN: tl.constexpr, STARTS: tl.constexpr, SAVE: tl.constexpr, BB: tl.constexpr,
    BH: tl.constexpr,
):  # fmt: skip
    """Spikes (B, T, H), and ``kept``; unless ``SAVE`` that is the last u alone, (B, 1, H)."""
    sequences = tl.program_id(0) * BB + tl.arange(0, BB)
    neurons = tl.arange(0, BH)
    there = neurons < width
    inside = (sequences < batch)[:, None] & there[None, :]
    limit = tl.where(inside, tokens, 0)
    heard = tl.load(
        w_rec + neurons[None, :] * width + neurons[:, None], mask=there[None, :] & there[:, None], other=0.0
    )
    high, middle, low = parts(heard)
    decay, threshold = per_neuron(beta, neurons, there), per_neuron(theta, neurons, there)
    factor = per_neuron(gain, neurons, there) if GAIN else 1.0
    state = sequences[:, None].to(tl.int64) * width + neurons[None, :]
    u = tl.load(u0 + state, mask=inside, other=0.0)
    s = tl.load(s0 + state, mask=inside, other=0.0)
    at = sequences[:, None].to(tl.int64) * tokens * width + neurons[None, :]
    slot = sequences[:, None].to(tl.int64) * (tokens + 1 if SAVE else 1) * width + neurons[None, :]
    coming = tl.load(x + at, mask=inside, other=0.0)
    for t in range(tokens):
        if SAVE:
            tl.store(kept + slot, u, mask=inside)
            slot += width
        if STARTS:
            first = begins(starts, sequences, batch, tokens, t)
            u = tl.where(first, 0.0, u)
            s = tl.where(first, 0.0, s)
        current = coming.to(tl.float32)
        coming = tl.load(x + at + width, mask=t + 1 < limit, other=0.0)  # while the product is at work
        told = s.to(tl.bfloat16)
        sound = plus_product(tl.zeros((BB, BH), tl.float32), told, low)
        sound = plus_product(sound, told, middle)
        current = current + plus_product(sound, told, high)
        if GAIN:
            current = factor * current
        u = membrane(u, s, current, decay, threshold, RESET)
        s = spike(u, threshold)
        tl.store(spikes + at, s.to(spikes.dtype.element_ty), mask=inside)
        at += width
    tl.store(kept + slot, u, mask=inside)


@triton.jit
def walk_back(
    x, w_rec, beta, theta, gain, s0, starts, kept, spikes_bar, last_bar, deltas, u0_bar, s0_bar, sums, plane, alpha,
    batch, tokens, width, RESET: tl.constexpr, GAIN: tl.constexpr, STARTS: tl.constexpr, SURROGATE: tl.constexpr,
    DETACH: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """``deltas`` = dL/du (B, T, H), gradients of u0 and s0, and by each sequence alone ``sums`` (3, B, H).

    The sums are those for beta, theta and gain, the last without what is heard; ``plane`` is B H.
    """
    sequences = tl.program_id(0) * BB + tl.arange(0, BB)
    neurons = tl.arange(0, BH)
    there = neurons < width
    inside = (sequences < batch)[:, None] & there[None, :]
    told = tl.load(w_rec + neurons[:, None] * width + neurons[None, :], mask=there[None, :] & there[:, None], other=0.0)
    high, middle, low = parts(told)
    decay, threshold = per_neuron(beta, neurons, there), per_neuron(theta, neurons, there)
    factor = per_neuron(gain, neurons, there) if GAIN else 1.0
    state = sequences[:, None].to(tl.int64) * width + neurons[None, :]
    heard = tl.load(s0 + state, mask=inside, other=0.0)
    of_u = tl.load(last_bar + state, mask=inside, other=0.0)
    of_s = tl.zeros((BB, BH), tl.float32)
    of_beta = tl.zeros((BB, BH), tl.float32)
    of_theta = tl.zeros((BB, BH), tl.float32)
    of_gain = tl.zeros((BB, BH), tl.float32)
    at = (sequences[:, None].to(tl.int64) + 1) * tokens * width + neurons[None, :]
    slot = kept + (sequences[:, None].to(tl.int64) * (tokens + 1) + tokens) * width + neurons[None, :]
    after_u = tl.load(slot, mask=inside, other=0.0)
    for back in range(tokens):
        t = tokens - 1 - back
        at -= width
        slot -= width
        before_u = tl.load(slot, mask=inside, other=0.0)
        coming = before_u
        before_s = tl.where(t == 0, heard, spike(before_u, threshold))
        upstream = tl.load(spikes_bar + at, mask=inside, other=0.0).to(tl.float32)
        if STARTS:
            first = begins(starts, sequences, batch, tokens, t)
            before_u = tl.where(first, 0.0, before_u)
            before_s = tl.where(first, 0.0, before_s)
        by_spike = slope(after_u - threshold, alpha, SURROGATE) * (upstream + of_s)
        delta = by_spike + of_u
        tl.store(deltas + at, delta, mask=inside)
        of_beta += delta * decayed(before_u, before_s, threshold, RESET)
        of_theta += delta * into_theta(before_s, decay, RESET) - by_spike
        of_u = into_u(delta, before_s, decay, RESET)
        of_s = into_s(delta, before_u, decay, threshold, RESET, DETACH)
        if GAIN:
            of_gain += delta * tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            delta = factor * delta
        a, b, c = parts(delta)
        asked = plus_product(tl.zeros((BB, BH), tl.float32), a, low)
        asked = plus_product(asked, b, middle)
        asked = plus_product(asked, c, high)
        asked = plus_product(asked, a, middle)
        asked = plus_product(asked, b, high)
        of_s += plus_product(asked, a, high)
        if STARTS:
            of_u = tl.where(first, 0.0, of_u)
            of_s = tl.where(first, 0.0, of_s)
        after_u = coming
    tl.store(u0_bar + state, of_u, mask=inside)
    tl.store(s0_bar + state, of_s, mask=inside)
    tl.store(sums + state, of_beta, mask=inside)
    tl.store(sums + plane + state, of_theta, mask=inside)
    if GAIN:
        tl.store(sums + plane + plane + state, of_gain, mask=inside)


@triton.jit(do_not_specialize=["t"])
def step(
    x, sound, beta, theta, gain, starts, spikes, kept, told, t, tokens, width,
    RESET: tl.constexpr, GAIN: tl.constexpr, STARTS: tl.constexpr, SAVE: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Token t of one sequence, given what is heard, ``sound`` (B, H), and the last spikes ``told`` (B, H).

    ``told`` becomes what is told at the next token: nothing, where that begins a document.
    """
    sequence = tl.program_id(1).to(tl.int64)
    neurons = tl.program_id(0) * BH + tl.arange(0, BH)
    inside = neurons < width
    decay = tl.load(beta + neurons, mask=inside, other=0.0)
    threshold = tl.load(theta + neurons, mask=inside, other=0.0)
    state = sequence * width + neurons
    slot = kept + (sequence * (tokens + 1) + t if SAVE else sequence) * width + neurons
    u = tl.load(slot, mask=inside, other=0.0)
    s = tl.load(told + state, mask=inside, other=0.0)
    if STARTS:
        u = tl.where(tl.load(starts + sequence * tokens + t) != 0, 0.0, u)
    at = (sequence * tokens + t) * width + neurons
    current = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    current = current + tl.load(sound + state, mask=inside, other=0.0)
    if GAIN:
        current = tl.load(gain + neurons, mask=inside, other=0.0) * current
    u = membrane(u, s, current, decay, threshold, RESET)
    s = spike(u, threshold)
    tl.store(slot + (width if SAVE else 0), u, mask=inside)
    tl.store(spikes + at, s.to(spikes.dtype.element_ty), mask=inside)
    if STARTS:
        s = tl.where(tl.load(starts + sequence * tokens + t + 1, mask=t + 1 < tokens, other=0) != 0, 0.0, s)
    tl.store(told + state, s, mask=inside)


@triton.jit(do_not_specialize=["t"])
def step_back(
    x, asked, beta, theta, gain, s0, starts, kept, spikes_bar, deltas, of_u, of_s, asks, sums, plane, alpha, t, tokens,
    width, RESET: tl.constexpr, GAIN: tl.constexpr, STARTS: tl.constexpr, SURROGATE: tl.constexpr,
    DETACH: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Token t of one sequence backwards; see ``walk_back``.

    ``asked`` (B, H) is what the next token asks of s_t through the map, ``of_s`` what it does through the reset, and
    ``of_u`` what it asks of u_t; the last two are replaced by what this token asks, as is ``asks``, of which the
    product with the map is to be the next ``asked``.
    """
    sequence = tl.program_id(1).to(tl.int64)
    neurons = tl.program_id(0) * BH + tl.arange(0, BH)
    inside = neurons < width
    decay = tl.load(beta + neurons, mask=inside, other=0.0)
    threshold = tl.load(theta + neurons, mask=inside, other=0.0)
    state = sequence * width + neurons
    slot = kept + (sequence * (tokens + 1) + t) * width + neurons
    before_u = tl.load(slot, mask=inside, other=0.0)
    after_u = tl.load(slot + width, mask=inside, other=0.0)
    before_s = tl.where(t == 0, tl.load(s0 + state, mask=inside, other=0.0), spike(before_u, threshold))
    if STARTS:
        first = tl.load(starts + sequence * tokens + t) != 0
        before_u = tl.where(first, 0.0, before_u)
        before_s = tl.where(first, 0.0, before_s)
    at = (sequence * tokens + t) * width + neurons
    arrives = tl.load(spikes_bar + at, mask=inside, other=0.0).to(tl.float32)
    arrives += tl.load(of_s + state, mask=inside, other=0.0) + tl.load(asked + state, mask=inside, other=0.0)
    by_spike = slope(after_u - threshold, alpha, SURROGATE) * arrives
    delta = by_spike + tl.load(of_u + state, mask=inside, other=0.0)
    tl.store(deltas + at, delta, mask=inside)
    add(sums + state, delta * decayed(before_u, before_s, threshold, RESET), inside)
    add(sums + plane + state, delta * into_theta(before_s, decay, RESET) - by_spike, inside)
    next_u = into_u(delta, before_s, decay, RESET)
    next_s = into_s(delta, before_u, decay, threshold, RESET, DETACH)
    if GAIN:
        add(sums + plane + plane + state, delta * tl.load(x + at, mask=inside, other=0.0).to(tl.float32), inside)
        delta = tl.load(gain + neurons, mask=inside, other=0.0) * delta
    if STARTS:
        next_u = tl.where(first, 0.0, next_u)
        next_s = tl.where(first, 0.0, next_s)
        delta = tl.where(first, 0.0, delta)
    tl.store(of_u + state, next_u, mask=inside)
    tl.store(of_s + state, next_s, mask=inside)
    tl.store(asks + state, delta, mask=inside)


@triton.jit
def add(pointer, x, inside):
    """To numbers that no other program touches."""
    tl.store(pointer, tl.load(pointer, mask=inside, other=0.0) + x, mask=inside)

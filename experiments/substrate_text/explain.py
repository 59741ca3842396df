"""Why the graph expects a word: its contexts and what each adds to the score, as a picture.

    python experiments/substrate_text/explain.py <run folder> "<beginning of a story>" [answer=<word>] [out=<file>.png]

One step of spreading from the contexts that the beginning activates gives the answer's score without its resting
potential, so the picture is what `bouton.substrate.explain` says of that step. The text below it is compared with the
logits of the body: they must agree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch

import bouton
from bouton import substrate
from bouton.models.substrate import Substrate


def words_of(model: Substrate, token: Callable[[int], str]) -> Callable[[int], str]:
    """Names of nodes: an answer, a token so many places back, or an assembly of tokens."""
    vocabulary, first = model.vocab_size, model.answers
    keys = dict(zip(model.assemblies.numbers.tolist(), model.assemblies.keys.tolist(), strict=True))

    def name(node: int) -> str:
        if node < first:
            return token(node)
        if node < first + model.config.positions * vocabulary:
            back, one = divmod(node - first, vocabulary)
            return f"{token(one)}  ({back + 1} back)"
        rest = keys[node]
        found: list[str] = []
        while rest:
            rest, digit = divmod(rest, vocabulary + 1)
            found.insert(0, token(digit - 1))
        return f"[{' '.join(found)}]"

    return name


def main(folder: str, beginning: str, *options: str) -> None:
    given = dict(option.split("=", 1) for option in options)
    run = bouton.load(folder, device="cpu")
    model, tokenizer = run.model, run.tokenizer
    if not isinstance(model, Substrate):
        sys.exit(f"run = {folder} is of another body: valid are runs with model=substrate")
    ids = torch.tensor([[tokenizer.eot_id, *tokenizer.encode(beginning)]])
    logits = model(ids)[0][0, -1]
    answer = int(tokenizer.encode(given["answer"])[0]) if "answer" in given else int(logits.argmax())
    nodes, keys, _ = model.active(ids, None, None)
    contexts = np.concatenate((nodes[0, -1], model.assemblies.find(keys)[0, -1]))
    graph = model.graph
    active = substrate.spread(graph, contexts[contexts >= 0], steps=1, top_k=len(graph), signed=True, record=True)
    found = substrate.explain(graph, active, answer)

    def token(one: int) -> str:
        return "(start)" if one == tokenizer.eot_id else tokenizer.decode([one]).strip()

    rest = float(model.rest[answer])
    if abs(rest + found.total - float(logits[answer])) > 1e-4:
        sys.exit(f"the contributions give {rest + found.total:.6f}, the body {float(logits[answer]):.6f}")
    p = float(logits.softmax(-1)[answer])
    figure = substrate.draw(graph, found, name=words_of(model, token))
    figure.suptitle(f"“{beginning} …”", fontsize=10, style="italic")
    figure.supxlabel(
        f"resting potential {rest:+.3f}, contributions {found.total:+.3f}: score {rest + found.total:.3f}, "
        f"probability of “{token(answer)}” {p:.3f}",
        fontsize=9,
    )
    figure.savefig(given.get("out", "explained.png"), dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])

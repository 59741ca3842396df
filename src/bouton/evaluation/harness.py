"""A run as a model of the library lm-eval (EleutherAI's harness), so that public benchmarks run unchanged.

    bouton eval run=runs/... tasks=[lm_eval:arc_easy,lm_eval:hellaswag]     # results in the run folder
    python -m bouton.evaluation --model bouton --model_args run=runs/... --tasks arc_easy      # lm-eval's own words

A text begins with the end-of-text token, as every document in training does. Needs the extra ``eval`` (lm-eval).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from bouton.errors import ConfigError, DataError
from bouton.evaluation.scoring import score_all
from bouton.generation import Sampling, generate
from bouton.generation.decode import position_limit
from bouton.runs import Run, load

_DEFAULT_BATCH = 16
_MAX_GENERATED = 256  # tokens, as in lm-eval's other models
# What lm-eval says to models about generation and means nothing here.
_IGNORED = {"do_sample", "num_return_sequences", "num_beams"}


@register_model("bouton")
class BoutonLM(TemplateLM):
    """The run in ``run`` (a folder, or a loaded run) behind lm-eval's interface.

    Args:
        batch_size: rows of one pass; ``auto``: 16.
        max_length: longest text, in tokens; a longer context loses its beginning. None: ``model.max_seq_len``.
    """

    def __init__(
        self,
        run: str | Path | Run,
        checkpoint: str = "best",
        device: str | None = None,
        kernels: str = "auto",
        batch_size: int | str = _DEFAULT_BATCH,
        max_length: int | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = None  # lm-eval's command line asks for cuda:0 when nobody has asked for anything
        self.run = load(run, checkpoint, device, kernels) if isinstance(run, str | Path) else run
        self.model, self.vocabulary = self.run.model, self.run.tokenizer
        if self.vocabulary.kind == "integers":
            raise DataError(f"run = {self.run.folder}: lm-eval needs a run that was trained on text")
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else _DEFAULT_BATCH
        limit = position_limit(self.model)
        self.max_length = int(max_length or self.model.max_seq_len)
        if limit is not None and self.max_length > limit:
            raise ConfigError(f"max_length = {self.max_length} is too long: learned positions end at {limit}")
        self._device = next(self.model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        return self.vocabulary.eot_id

    @property
    def tokenizer_name(self) -> str:
        return self.vocabulary.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, without the end-of-text token that scoring puts before it."""
        return self.vocabulary.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        contexts, continuations = [], []
        for _, context, continuation in requests:
            before = context if context[:1] == [self.eot_token_id] else [self.eot_token_id, *context]
            # The last token of a continuation is predicted, not read.
            room = max(1, self.max_length + 1 - len(continuation))
            contexts.append(before[-room:])
            continuations.append(continuation[-self.max_length :])
        results: list[tuple[float, bool]] = []
        step = self.batch_size * 16
        for begin in tqdm(range(0, len(contexts), step), "log-likelihoods", disable=disable_tqdm):
            part = slice(begin, begin + step)
            scores = score_all(self.model, contexts[part], continuations[part], self.batch_size)
            results += [(s.logprob, s.greedy) for s in scores]
        for request, result in zip(requests, results, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts; of a long one in windows, each token predicted once."""
        windows, owners = [], []
        for index, request in enumerate(requests):
            (text,) = request.args
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.eot_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._windows(windows, disable_tqdm), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, windows: list[tuple[None, list[int], list[int]]], quiet: bool) -> list[tuple[float, bool]]:
        """Scores of windows, which have their own first token and get no other."""
        scores = score_all(self.model, [c for _, c, _ in windows], [t for _, _, t in windows], self.batch_size)
        return [(s.logprob, s.greedy) for s in scores]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of its stop strings."""
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        with tqdm(total=len(requests), desc="texts", disable=disable_tqdm) as bar:
            for members in groups.values():
                stop, length, sampling = _generation(requests[members[0]].args[1])
                for begin in range(0, len(members), self.batch_size):
                    chosen = members[begin : begin + self.batch_size]
                    prompts = [self._prompt(requests[i].args[0], length) for i in chosen]
                    rows = generate(
                        self.model, self.vocabulary, prompts, stop=stop, max_new_tokens=length, sampling=sampling
                    )
                    for i, row in zip(chosen, rows, strict=True):
                        texts[i] = row.text
                        self.cache_hook.add_partial("generate_until", requests[i].args, row.text)
                    bar.update(len(chosen))
        return texts

    def _prompt(self, context: str, length: int) -> str:
        """The end of a context that leaves room for ``length`` tokens and the end-of-text token before it."""
        tokens = self.tok_encode(context)
        room = max(1, self.max_length - length - 1)
        return context if len(tokens) <= room else self.vocabulary.decode(tokens[-room:])


def _generation(arguments: dict[str, Any]) -> tuple[list[str], int, Sampling]:
    """lm-eval's generation arguments: stop strings, length, sampling.

    Raises:
        ConfigError: an argument that is unknown here.
    """
    given = dict(arguments)
    until = given.pop("until", None) or []
    stop = [until] if isinstance(until, str) else [text for text in until if text]
    length = int(given.pop("max_gen_toks", _MAX_GENERATED))
    sampled = bool(given.get("do_sample", False))
    fields = Sampling.specs()
    values = {name: given.pop(name) for name in list(given) if name in fields}
    if unknown := sorted(given.keys() - _IGNORED):
        raise ConfigError(f"lm-eval asks for generation with {unknown[0]}, which is unknown here")
    if not sampled:
        values["temperature"] = 0.0
    return stop, length, Sampling(**values)

"""lm_eval: any task of the library lm-eval, unchanged: ``tasks=[lm_eval:arc_easy,lm_eval:hellaswag]``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from bouton.errors import DataError, EvaluationError
from bouton.evaluation.base import Result, Task
from bouton.evaluation.intervals import Estimate
from bouton.evaluation.options import Params, integer, text
from bouton.evaluation.registry import register
from bouton.evaluation.subject import Subject
from bouton.hub.optional import require

_NORMAL = 1.959964  # half a 95 % interval, in standard errors


@dataclass(frozen=True)
class HarnessOptions(Params):
    fewshot: int | None = integer(None, "examples before each question; null: what the task says", low=0)
    limit: int | None = integer(None, "questions, at most; null: all", low=1)
    include_path: str | None = text("folder with further task definitions (YAML)")


@register
class Harness(Task):
    name = "lm_eval"
    summary = "a task, group or tag of lm-eval by its name there; needs the extra eval"
    source = "Gao et al., The Language Model Evaluation Harness (github.com/EleutherAI/lm-evaluation-harness)"
    Options = HarnessOptions
    argument_doc: ClassVar = "the name of a task of lm-eval"

    def check(self, subject: Subject) -> None:
        require("lm_eval", "eval", f"task lm_eval:{self.argument}")
        subject.require_text(f"lm_eval:{self.argument}")

    def measure(self, subject: Subject, options: HarnessOptions) -> Result:
        from lm_eval import simple_evaluate

        from bouton.evaluation.harness import BoutonLM

        manager = _manager(options.include_path)
        if self.argument not in manager.all_tasks:
            raise EvaluationError(f"lm-eval has no task '{self.argument}': lm_eval ls tasks lists them")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        try:
            found: Any = simple_evaluate(
                model=BoutonLM(subject.run, batch_size=subject.batch_size),
                tasks=[self.argument],
                num_fewshot=options.fewshot,
                limit=options.limit,
                task_manager=manager,
                verbosity=None,
            )
        except (ConnectionError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"the data of lm_eval:{self.argument} cannot be loaded: {reason}") from error
        result = Result()
        for task, metrics in found["results"].items():
            for name, estimate in estimates(metrics).items():
                result.put(name if task == self.argument else f"{task}/{name}", estimate)
        counts = found.get("n-samples", {})
        result.numbers["questions"] = sum(int(c["effective"]) for c in counts.values())
        result.tables["versions"] = [{"task": task, "version": v} for task, v in found.get("versions", {}).items()]
        return result


@lru_cache(maxsize=1)
def _manager(include_path: str | None) -> Any:
    """lm-eval's index of tasks: it reads thousands of files, so it is kept for the next task."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def estimates(metrics: dict[str, Any]) -> dict[str, Estimate]:
    """lm-eval's ``acc,none`` and ``acc_stderr,none`` as estimates; a filter other than none is part of the name."""
    result = {}
    for key, value in metrics.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, str):
            continue
        error = metrics.get(f"{metric}_stderr,{kind}")
        se = float(error) if isinstance(error, int | float) else float("nan")
        name = metric if kind == "none" else f"{metric}_{kind}"
        result[name] = Estimate(float(value), se, float(value) - _NORMAL * se, float(value) + _NORMAL * se)
    return result

"""What a search shows while it runs: ``best.yaml``, a picture, TensorBoard, and W&B where the command has it on."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bouton.config.naming import canonical_name
from bouton.files import write_json, write_text
from bouton.sweeps.engine import Search
from bouton.sweeps.pictures import covariance_image, draw_convergence
from bouton.sweeps.space import Space

# Of one run or of the search, not of what was found.
_LEFT_OUT = ("hydra", "run_dir", "ckpt_path", "seed", "sweep")
_NO_CHOICE = ("experiment", "sweep", "local")

Record = Mapping[str, Any]


class Recorder:
    """Writes into the folder of a search.

    TensorBoard's files are made anew when a search is resumed, from its journal, so they are complete.

    Args:
        folder: of the search.
        cfg: what the words of the command compose.
        compose: a configuration from words, with Hydra's own node.
    """

    def __init__(self, folder: Path, cfg: DictConfig, compose: Callable[[Sequence[str]], DictConfig]) -> None:
        self.folder = folder
        self._compose = compose
        self._options: Any = (cfg.get("logger") or {}).get("wandb")
        self._generations: list[Record] = []
        self._written: list[str] = []
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard")

    def generation(self, record: Record, space: Space, search: Search, best: Record) -> None:
        """Show one generation; ``record`` is its line in the journal."""
        self._generations.append(record)
        step = len(self._generations)
        scalars = self._scalars(record, space, search, best)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        scores = [score for score in record["scores"] if score is not None]
        if scores:
            self._writer.add_histogram("search/scores", _array(scores), step)
        for axis in space.axes:
            values = [candidate[axis.key] for candidate in record["candidates"]]
            if axis.kind != "categorical":
                self._writer.add_histogram(f"candidates/{axis.key}", _array([float(v) for v in values]), step)
        labels = [axis.key for axis in space.axes for _ in range(axis.width)]
        image = covariance_image(search.covariance, labels, f"{record['phase']}, generation {record['generation']}")
        self._writer.add_image("search/covariance", image, step, dataformats="HWC")
        self._writer.flush()
        self._write_best(best)
        if not record.get("replayed"):
            draw_convergence(self._generations, self.folder / "convergence.png")
            self._to_wandb(scalars, scores, image, step)

    def end(self, best: Record, result: Record) -> None:
        """Show the result."""
        self._write_best(best)
        write_json(self.folder / "result.json", result)
        if self._generations:
            draw_convergence(self._generations, self.folder / "convergence.png")

    def close(self) -> None:
        """Close the files."""
        self._writer.close()

    def _scalars(self, record: Record, space: Space, search: Search, best: Record) -> dict[str, float]:
        scores = sorted(score for score in record["scores"] if score is not None)
        values = {
            "search/sigma": float(record["sigma"]),
            "search/popsize": float(len(record["scores"])),
            "search/failed": float(record["statuses"].count("failed")),
            "search/stopped": float(record["statuses"].count("stopped")),
        }
        if best["score"] is not None:
            values["search/best"] = float(best["score"])
        if scores:
            values |= {"search/generation_best": scores[0], "search/generation_median": scores[len(scores) // 2]}
        mean = space.decode(search.mean)
        for axis in space.axes:
            if axis.kind != "categorical":
                values[f"mean/{axis.key}"] = float(mean[axis.key])
                values[f"best/{axis.key}"] = float(best["values"][axis.key])
        return values

    def _write_best(self, best: Record) -> None:
        """``best.yaml``: an experiment file with everything that the winner was trained with."""
        words = [str(word) for word in best["words"]]
        if words == self._written:
            return
        self._written = words
        write_text(self.folder / "best.yaml", experiment_file(self._compose(words), best))

    def _to_wandb(self, scalars: Mapping[str, float], scores: Sequence[float], image: Any, step: int) -> None:
        """One short session a generation: trials in this process begin and end runs of their own."""
        if self._options is None:
            return
        import wandb

        from bouton.training.loggers import wandb_mode

        run = wandb.init(
            project=self._options["project"],
            entity=self._options["entity"],
            group=self._options["group"],
            tags=list(self._options["tags"] or []),
            name=self.folder.name,
            dir=self.folder,
            id=hashlib.sha256(str(self.folder).encode()).hexdigest()[:12],
            resume="allow",
            mode="offline" if wandb_mode(self._options["mode"]) == "offline" else "online",
            reinit="finish_previous",
        )
        pictures = {
            "search/covariance": wandb.Image(image),
            "search/convergence": wandb.Image(str(self.folder / "convergence.png")),
            "search/scores": wandb.Histogram(list(scores) or [0.0]),
        }
        run.log({**scalars, **pictures}, step=step)
        run.finish()


def experiment_file(cfg: DictConfig, best: Record) -> str:
    """The text of an experiment file that composes ``cfg``, whatever the command was.

    ``python train.py experiment=<path of this file>`` trains the winner.
    """
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices) if "hydra" in cfg else {}
    assert isinstance(choices, dict)
    if cfg.get("mechanism") is not None:
        choices["mechanism"] = canonical_name(cfg)
    defaults = [
        {f"override /{group}": option}
        for group, option in sorted(choices.items())
        if option is not None and not str(group).startswith("hydra/") and group not in _NO_CHOICE
    ]
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    content = {key: value for key, value in plain.items() if key not in _LEFT_OUT}
    score = "none" if best["score"] is None else f"{best['score']:.6g}"
    lines = ["# @package _global_", f"# Found by hydra/sweeper=cmaes: {best['name']}, score {score}."]
    lines += [f"#   {key}: {value}" for key, value in best["values"].items()]
    body = OmegaConf.to_yaml(OmegaConf.create({"defaults": defaults, **content} if defaults else content))
    return "\n".join(lines) + "\n" + body


def _array(values: Sequence[float]) -> Any:
    import numpy as np

    return np.asarray(values, dtype=np.float64)

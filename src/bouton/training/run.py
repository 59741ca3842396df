"""``bouton.training.train(cfg)``: one configuration, one run folder, one number."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bouton.config import elastic
from bouton.errors import CheckpointError, ConfigError
from bouton.files import remove_partials, write_json, write_text
from bouton.models.build import BODIES
from bouton.training.callbacks import build_callbacks
from bouton.training.callbacks.curriculum import check_phases
from bouton.training.callbacks.media import add_sample, read_samples, sample_text
from bouton.training.checkpoints import KEY, LAST, check_compatible, find_run, read_checkpoint
from bouton.training.costs import EnergyMeter, reset_peak_memory
from bouton.training.curves import draw_curves
from bouton.training.environment import environment
from bouton.training.local import LocalTrainingModule, without_gradients
from bouton.training.loggers import build_loggers, finished, log_sample
from bouton.training.module import TrainingModule
from bouton.training.random_state import preserved_globals, seed_everything
from bouton.training.report import print_results, summarize
from bouton.training.start import RECORD, load_start
from bouton.training.trainer import build_trainer, check_trainer, on_gpu, precision, quiet_lightning

log = logging.getLogger("bouton.training")

SAMPLE_TOKENS = 120  # of the text at the end of a run

Config = dict[str, Any]


def train(cfg: DictConfig) -> float:
    """Train what ``cfg`` describes in the run folder ``cfg.run_dir`` and return the final validation loss.

    The loss is in nats per target token. With ``cfg.ckpt_path`` the run goes on from a checkpoint as if it had never
    stopped; ``last`` means the last checkpoint of this run folder or, in a fresh one, of the newest run beside it with
    the same configuration.

    Raises:
        BoutonError: configuration, data or checkpoint do not allow the run, or training had to stop.
    """
    from bouton.data import build_datamodule
    from bouton.models.build import build

    return run(cfg, lambda c: build_datamodule(c["data"], c["seed"]), lambda c: build(OmegaConf.create(c)))


def run(cfg: DictConfig, make_data: Callable[[Config], Any], make_body: Callable[[Config], nn.Module]) -> float:
    """:func:`train` with the makers of data and body given, each called with the resolved configuration.

    The data module offers ``tokenizer`` (``vocab_size``, ``token_bytes``, ``fingerprint``, ``save``), the loaders, and
    ``state_dict`` / ``load_state_dict``, after which its training loader goes on in the order where it stopped. With
    several validation loaders it names those after the first in ``extra_validation``.
    """
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    plain: Config = {str(k): v for k, v in config.items()}
    with preserved_globals(), quiet_lightning():
        return _Run(plain, make_data, make_body).execute()


class _Run:
    """One run, step by step. Nothing is written before the checkpoint to continue from is known to fit."""

    def __init__(
        self, config: Config, make_data: Callable[[Config], Any], make_body: Callable[[Config], nn.Module]
    ) -> None:
        self.config = config
        self.make_data = make_data
        self.make_body = make_body
        self.elastic = elastic.inside()
        self.rank = int(os.environ["RANK"]) if self.elastic else 0
        self.world_size = int(os.environ["WORLD_SIZE"]) if self.elastic else 1
        self.settings: Config = config["trainer"]
        self._labelled = False  # the targets are labels, no text
        self._locally = getattr(BODIES.get(config["model"].get("body")), "learns_locally", False)

    def execute(self) -> float:
        if self._locally:
            without_gradients(self.config)
        check_trainer(self.settings)
        check_phases(self.config["data"], self.config["callbacks"], self.settings)
        begin = time.perf_counter()
        self.folder, checkpoint = self._folder_and_checkpoint()
        seed = int(self.config["seed"])
        seed_everything(seed, self.rank)
        reset_peak_memory()
        self._join()
        data = self._prepared_data()
        self._resolve_vocabulary(data.tokenizer.vocab_size)
        labels = self._resolve_labels(data)
        body = self.make_body(self.config)
        start = self.config.get("init_from")
        origin = load_start(body, str(start)) if start is not None and checkpoint is None else None
        seed_everything(seed, self.rank)  # whatever building drew, training begins at the same place
        accumulate = self.settings["accumulate_grad_batches"]
        per_batch = int(self.config["data"]["batch_size"]) * int(self.config["data"]["seq_len"])
        facts = {
            "vocabulary": str(data.tokenizer.fingerprint),
            "sequences per optimizer step": int(self.config["data"]["batch_size"]) * accumulate * self.world_size,
        }
        resume_step: int | None = None
        if checkpoint is not None:
            check_compatible(checkpoint, self.config, facts)
            resume_step = int(checkpoint[KEY]["step"])
            # Micro-batches are counted in those of this run: the first one may have split its steps in another way.
            done = {"batches_consumed": resume_step * accumulate}
            data.load_state_dict({**checkpoint[type(data).__qualname__], **done})
        resolved = OmegaConf.to_yaml(OmegaConf.create(self.config))
        module = (LocalTrainingModule if self._locally else TrainingModule)(
            body,
            optimizer=self.config["optimizer"],
            schedule=self.config["schedule"],
            max_steps=self.settings["max_steps"],
            targets_per_batch=per_batch,
            token_bytes=torch.as_tensor(data.tokenizer.token_bytes),
            label_names=labels,
            label_weights=getattr(data, "label_weights", None),
            extra_validation=getattr(data, "extra_validation", ()),
        )
        callbacks = build_callbacks(
            self.config["callbacks"],
            self.settings,
            folder=self.folder,
            resolved=resolved,
            facts=facts,
            resume=checkpoint,
            tokens_per_step=per_batch * accumulate * self.world_size,
            flops_per_token=_training_flops(body, int(self.config["data"]["seq_len"])),
            precision=precision(self.settings),
            tokenizer=data.tokenizer,
            seed=seed,
        )
        main = self.rank == 0
        loggers = build_loggers(
            self.config["logger"] or {},
            folder=self.folder,
            resume_step=resume_step,
            resolved=self.config,
            main=main,
        )
        trainer = build_trainer(
            self.settings, folder=self.folder, callbacks=callbacks, loggers=loggers, elastic=self.elastic
        )
        device = trainer.strategy.root_device
        energy = EnergyMeter(device)
        if main:
            self._write_identity(resolved, data, seed, origin)
        if self.settings["compile"]:
            body.compile()  # in place: parameter names, and so checkpoints, stay the same
        with finished(loggers):
            log.info("ready to train after %.1f s in %s", time.perf_counter() - begin, self.folder)
            trainer.fit(module, datamodule=data)
            if main:
                summary = summarize(trainer, module, device=device, energy=energy, resumed_from=resume_step)
                body._compiled_call_impl = None  # decoding has other shapes than training
                sample = self._sample(body, data, trainer.global_step, loggers)
        if main:
            write_json(self.folder / "summary.json", summary)
            draw_curves(self.folder, self.folder.name)
            print_results(summary, sample, self.folder, self._name())
        return float(module.validation["loss"])

    # -- before anything is written -----------------------------------------------------------------------------

    def _folder_and_checkpoint(self) -> tuple[Path, dict[str, Any] | None]:
        """The run folder to work in and the checkpoint to continue from, if any."""
        given = self.config.get("run_dir")
        folder = Path(given) if given else Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
        path = self.config.get("ckpt_path")
        if path is None:
            if (folder / LAST).exists():
                raise ConfigError(
                    f"run_dir = {folder} already holds a run: add ckpt_path=last, or choose another folder"
                )
            return folder, None
        if str(path) != "last":
            if (folder / LAST).exists() and Path(path).resolve().parent != (folder / LAST).resolve().parent:
                raise ConfigError(
                    f"run_dir = {folder} already holds another run than ckpt_path = {path}: choose a new one"
                )
            return folder, read_checkpoint(Path(path))
        if not (folder / LAST).exists():
            if (folder / "config.yaml").exists():
                raise CheckpointError(f"ckpt_path = last: the run in {folder} has no checkpoints/last.ckpt")
            roots = [folder.parent]
            if (folder.parent / "multirun.yaml").exists():  # a job of a sweep: look into the earlier sweeps as well
                roots += [p for p in folder.parent.parent.glob("*") if (p / "multirun.yaml").exists()]
            # The vocabulary size may be known only from the data; a run folder holds the number.
            found = next((run for root in roots if (run := find_run(root, self.config)) is not None), None)
            if found is None:
                raise CheckpointError(
                    f"ckpt_path = last: no unfinished run with this configuration and a checkpoint in {folder.parent}"
                )
            if self.rank == 0:
                print(f"continuing the run in {found}")
            folder = found
        return folder, read_checkpoint(folder / LAST)

    def _join(self) -> None:
        """Make the process group early: rank 0 prepares data while the others wait."""
        if self.elastic and not dist.is_initialized():
            if on_gpu(self.settings):
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if on_gpu(self.settings) else "gloo")

    def _prepared_data(self) -> Any:
        data = self.make_data(self.config)
        if self.rank == 0:
            data.prepare_data()
        if self.elastic:
            dist.barrier()
        data.setup("fit")
        return data

    def _resolve_vocabulary(self, size: int) -> None:
        model = self.config["model"]
        if model.get("vocab_size") is None:
            model["vocab_size"] = int(size)
        if model["vocab_size"] < size:
            raise ConfigError(f"model.vocab_size = {model['vocab_size']} is too small: the tokenizer has {size} tokens")

    def _resolve_labels(self, data: Any) -> tuple[str, ...]:
        """The names of the labels of tokens, () where text is learned; the model gets an output for each."""
        labels: tuple[str, ...] = getattr(data, "label_names", ())
        model = self.config["model"]
        if (asked := model.get("num_labels")) not in (None, len(labels)):
            raise ConfigError(f"model.num_labels = {asked} is not valid: these data have {len(labels) or 'no'} labels")
        self._labelled = bool(labels)
        if labels:
            model["num_labels"] = len(labels)
        return labels

    # -- the run folder -----------------------------------------------------------------------------------------

    def _write_identity(self, resolved: str, data: Any, seed: int, origin: Config | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partials(self.folder)
        remove_partials(self.folder / "checkpoints")
        write_text(self.folder / "config.yaml", resolved)
        write_json(self.folder / "environment.json", environment(seed, self.world_size))
        data.tokenizer.save(self.folder / "tokenizer")
        if origin is not None:
            write_json(self.folder / RECORD, origin)

    def _name(self) -> str:
        return "+".join(sorted(self.config.get("mechanism") or {})) or "none"

    def _sample(self, body: nn.Module, data: Any, step: int, loggers: list[Any]) -> str | None:
        """A short text from the trained body, written and logged; None for data without text, and for labels."""
        if getattr(data.tokenizer, "kind", None) in (None, "integers") or self._labelled:
            return None
        text = sample_text(body, data.tokenizer, SAMPLE_TOKENS, int(self.config["seed"]))
        if text is None:
            return None
        write_text(self.folder / "sample.txt", text + "\n")
        if not any(line["step"] == step for line in read_samples(self.folder)):  # callbacks=media was here before
            add_sample(self.folder, step, text)
            log_sample(loggers, text, step)
        return text


def _training_flops(body: nn.Module, seq_len: int) -> float | None:
    """FLOPs per token of a forward and a backward pass (twice the forward)."""
    count = getattr(body, "flops_per_token", None)
    if getattr(body, "learns_locally", False):
        return None  # how many edges a token passes depends on what was learned
    return 3.0 * float(count(seq_len)) if callable(count) else None

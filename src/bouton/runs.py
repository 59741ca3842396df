"""``bouton.load(folder)``: a finished run as an object. Everything is read when it is first asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from bouton.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from omegaconf import DictConfig

    from bouton.data.tokenizers import Tokenizer
    from bouton.models.body import Body

# The training module holds the body under this name (`TrainingModule.body`).
_PREFIX = "body."
# Lightning keeps the state of the data module under its class name.
_DATA = "TokenDataModule"


def load(
    folder: str | Path,
    checkpoint: str | Path = "best",
    device: str | torch.device | None = None,
    kernels: str = "auto",
) -> Run:
    """Open a run folder.

    Args:
        folder: where a training run wrote.
        checkpoint: ``best`` (lowest validation loss), ``last``, or the path of a checkpoint file.
        device: where the model goes; None or ``auto``: the GPU if there is one, else the CPU.
        kernels: backend of all ops, whatever the run was trained with: all of them compute the same.

    Raises:
        CheckpointError: the folder does not exist or is not a run folder.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(f"run = {path}: there is no such folder{_newest(path)}")
    if not (path / "config.yaml").is_file():
        raise CheckpointError(f"run = {path} is not a run folder: it has no config.yaml{_newest(path)}")
    return Run(path, checkpoint, device, kernels)


class Run:
    """A run folder. See :func:`load`.

    Attributes:
        folder: its path.
    """

    def __init__(
        self, folder: Path, checkpoint: str | Path, device: str | torch.device | None, kernels: str = "auto"
    ) -> None:
        self.folder = folder
        self._checkpoint = checkpoint
        self._device = device
        self._kernels = kernels
        self._data_fingerprint: str | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def config(self) -> DictConfig:
        """The fully resolved configuration of the run."""
        from omegaconf import DictConfig, OmegaConf

        path = self.folder / "config.yaml"
        try:
            config = OmegaConf.load(path)
        except Exception as error:
            raise ConfigError(f"{path} cannot be read: {_first_line(error)}") from error
        if not isinstance(config, DictConfig) or "model" not in config:
            raise ConfigError(f"{path} is not the configuration of a run: it has no 'model'")
        return config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run's data."""
        from bouton.data.tokenizers import load_tokenizer

        return load_tokenizer(self.folder / "tokenizer")

    @property
    def checkpoint_name(self) -> str:
        """``best``, ``last``, or the path of a file, as it was asked for."""
        return str(self._checkpoint)

    @property
    def kernels(self) -> str:
        """The backend of the ops that was asked for."""
        return self._kernels

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file that :attr:`model` is read from.

        Raises:
            CheckpointError: there is no such file.
        """
        asked = str(self._checkpoint)
        path = self.folder / "checkpoints" / f"{asked}.ckpt" if asked in ("best", "last") else Path(asked).expanduser()
        if path.is_file():
            return path
        if (self.folder / "graph.bouton").is_file():
            raise CheckpointError(
                f"run = {self.folder} is one of a domain of the graph: it has no model, but graph.bouton, for "
                "bouton.substrate.open"
            )
        found = sorted(file.stem for file in (self.folder / "checkpoints").glob("*.ckpt"))
        there = f"this run has {', '.join(found)}" if found else "this run has none yet"
        raise CheckpointError(f"checkpoint = {asked}: there is no file {path}; {there}")

    @cached_property
    def model(self) -> Body:
        """The body with the checkpoint's weights and organism state, in evaluation mode, on the run's device.

        Raises:
            CheckpointError: the checkpoint is missing, corrupt, or does not fit the configuration.
        """
        from bouton.models.build import build
        from bouton.training.checkpoints import read_checkpoint

        device = pick_device(self._device)
        path = self.checkpoint
        checkpoint = read_checkpoint(path)
        tensors = body_tensors(checkpoint)
        self._data_fingerprint = checkpoint.get(_DATA, {}).get("fingerprint")
        config = self.config.copy()
        config.kernels = {"backend": self._kernels}
        if config.model.get("vocab_size") is None:
            config.model.vocab_size = self.tokenizer.vocab_size
        self._check_mechanisms(config)
        body = build(config)
        if problem := misfit(body, tensors):
            raise CheckpointError(f"checkpoint {path} does not fit {self.folder / 'config.yaml'}: {problem}")
        body.load_state_dict(tensors)
        return body.to(device).eval()

    @property
    def data_fingerprint(self) -> str | None:
        """What identifies the tokens that the checkpoint was trained on; None if it does not say."""
        self.model  # noqa: B018 (reading it reads the checkpoint)
        return self._data_fingerprint

    def _check_mechanisms(self, config: DictConfig) -> None:
        """Name the package of a mechanism that was there when the run was made and is not now."""
        from bouton.mechanisms import registry

        known = registry.mechanisms()
        for name in sorted(str(name) for name in config.get("mechanism") or () if name not in known):
            try:
                made_with = json.loads((self.folder / "environment.json").read_text())["mechanism_packages"]
                package = str(made_with[name])
            except (OSError, ValueError, KeyError, TypeError):
                raise ConfigError(f"run = {self.folder}: {registry.unknown(name)}") from None
            raise ConfigError(
                f"run = {self.folder}: mechanism '{name}' comes from the package '{package}', which is not installed "
                f"here or cannot be imported; {registry.unknown(name)}"
            )

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Training and validation metrics, one row per logged step; NaN where a metric was not measured."""
        return self._table("metrics.csv")

    @cached_property
    def vitals(self) -> pd.DataFrame:
        """The mechanisms' vitals over time; empty for a run without mechanisms."""
        return self._table("vitals.csv", optional=True)

    @property
    def evaluation(self) -> dict[str, dict[str, Any]]:
        """What ``bouton eval`` has measured with this checkpoint so far: task -> ``numbers``, ``tables``, and more."""
        from bouton.evaluation.store import load_results

        return load_results(self.folder, self.checkpoint_name)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Final and best metrics, costs, backends."""
        path = self.folder / "summary.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: the run has not finished") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {_first_line(error)}") from error
        return dict(content)

    @overload
    def generate(self, prompt: str, *, num_samples: int = 1, **options: Any) -> str | list[str]: ...

    @overload
    def generate(self, prompt: Sequence[str], *, num_samples: int = 1, **options: Any) -> list[str]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        num_samples: int = 1,
        **options: Any,
    ) -> str | list[str]:
        """Continue a prompt, or several in one batch.

        Args:
            prompt: the beginning of a document, or a list of such.
            num_samples: continuations per prompt.
            options: ``max_new_tokens``, ``stop`` (a string or several), ``seed``, ``batch_size``, and the fields of
                :class:`bouton.generation.Sampling`: ``temperature``, ``top_k``, ``top_p``, ``min_p``,
                ``repetition_penalty``, ``repetition_window``.

        Returns:
            The text after the prompt, without it. For one string and one sample a string; otherwise a list, all
            samples of the first prompt first.

        Raises:
            ConfigError: an unknown option or one out of range.
        """
        from bouton.generation import Sampling, generate
        from bouton.generation.options import split_options

        decoding, sampling = split_options(options)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = generate(
            self.model, self.tokenizer, prompts, num_samples=num_samples, sampling=Sampling(**sampling), **decoding
        )
        texts = [row.text for row in rows]
        return texts[0] if isinstance(prompt, str) and num_samples == 1 else texts

    def _table(self, name: str, *, optional: bool = False) -> pd.DataFrame:
        import pandas as pd

        path = self.folder / name
        if not path.is_file():
            if optional:
                return pd.DataFrame()
            raise DataError(f"{path} does not exist: the run was not logged to CSV, or has not logged yet")
        try:
            return pd.read_csv(path)
        except pd.errors.EmptyDataError:
            return pd.DataFrame()
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {_first_line(error)}") from error


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None and ``auto``: the GPU if there is one, else the CPU.

    Raises:
        ConfigError: an unknown name, or a device that this machine does not have.
    """
    import torch

    if device is None or str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device = {device} is not available here ({_first_line(error)}); valid: auto, cpu, cuda"
        ) from None
    return chosen


def body_tensors(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights and the organism state of the body in a checkpoint."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}


def misfit(body: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """How the tensors of a checkpoint differ from those of the body, by the first that does; None if they fit."""
    expected = body.state_dict()
    problem: str | None = None
    if missing := sorted(expected.keys() - tensors.keys()):
        problem = f"it lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    elif extra := sorted(tensors.keys() - expected.keys()):
        problem = f"it has {extra[0]}" + (f" and {len(extra) - 1} more" if len(extra) > 1 else "") + " besides"
    else:
        variable = getattr(body, "variable_state", ())
        for name, tensor in expected.items():
            if name not in variable and tensor.shape != tensors[name].shape:
                found, wanted = tuple(tensors[name].shape), tuple(tensor.shape)
                problem = f"{name} has shape {found} there and {wanted} in the configuration"
                break
    return problem


def _newest(path: Path) -> str:
    """The tail of a message about a wrong folder: the newest run nearby, if there is one."""
    for root in (path, path.parent, Path("runs")):
        files = [file for pattern in ("*/config.yaml", "*/*/config.yaml") for file in root.glob(pattern)]
        runs = [file.parent for file in files if (file.parent / "checkpoints").is_dir()]
        if runs:
            newest = max(runs, key=lambda run: run.stat().st_mtime)
            return f"; the newest run nearby is {newest}"
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]

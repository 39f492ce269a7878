"""Loggers by name, to which a run sends its metrics: TensorBoard, Weights & Biases, MLflow."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainability.errors import ArgumentError, ConfigError, suggestion
from trainability.training.addresses import without_secrets

_ADDRESSES = ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


class _TensorBoard:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        self._logger = TensorBoardLogger(folder, name="tensorboard", version="")
        self._logger.log_hyperparams(dict(config))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(dict(metrics), step)

    def close(self) -> None:
        self._logger.finalize("success")


class _WandB:
    """Offline unless the user's environment says otherwise (``WANDB_MODE=online``)."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        # It would ask git, which runs programs that the folder's configuration names, and keep code.
        quiet = wandb.Settings(silent=True, disable_git=True, disable_code=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project="trainability", name=folder.name, dir=folder, config=dict(config), mode=mode, settings=quiet
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """In the run's folder unless the user's environment names a server (``MLFLOW_TRACKING_URI``)."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import mlflow

        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').absolute()}")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name("trainability")
        experiment = found.experiment_id if found else self._client.create_experiment("trainability")
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for key, value in config.items():
            self._client.log_param(self._run, key, str(value)[:500])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Logger:
    """A logger by its name, with the recipe as its configuration.

    An error of its library becomes a sentence, without the passwords of servers' addresses.

    Raises:
        ConfigError: it cannot be opened or, later, does not take what it is sent.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._name = name
        with self._telling():
            self._logger = _KINDS[name](folder, dict(_flat(config)))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take metrics of one step."""
        with self._telling():
            self._logger.log(metrics, step)

    def close(self) -> None:
        """Write out what is buffered."""
        with self._telling():
            self._logger.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of three libraries and what they stand on
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            for variable in _ADDRESSES:
                reason = without_secrets(reason, os.environ.get(variable, ""))
            raise ConfigError(f"the logger {self._name!r} failed: {reason}", code="logger") from None


# Each is named as the package that it needs and as the extra that brings it.
_KINDS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}


def check(names: Sequence[str]) -> None:
    """Raise ValueError for a logger that is unknown or not installed, before anything is trained."""
    for name in names:
        if name not in _KINDS:
            raise ArgumentError(
                f"there is no logger {name!r}; {suggestion(name, _KINDS)}choose from {', '.join(_KINDS)}",
                code="unknown-choice",
            )
        if importlib.util.find_spec(name) is None:
            raise ArgumentError(f"the logger {name!r} needs: pip install 'trainability[{name}]'", code="missing-extra")


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in config.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs

"""Writers of a run, one for each process: to its folder and its loggers in the first, and nowhere in the others."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from trainability.training.files import finite
from trainability.training.folder import RunFolder
from trainability.training.history import History
from trainability.training.loggers import Logger, loggers


class Writer:
    """Writes nothing: what the processes of a run other than the first have in place of a `FolderWriter`."""

    damaged: Sequence[str] = ()  # checkpoints that were set aside

    @property
    def complete(self) -> bool:
        """True once the results are written."""
        return False

    def newest(self) -> dict[str, Any] | None:
        """The state to go on from."""
        return None

    def note(self, event: str, **values: Any) -> None:
        """Write down what happened at a step."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint."""

    def finish(self, step: int, histories: Sequence[History]) -> None:
        """Write the results."""

    def discard(self) -> None:
        """Take away what was written of a run that has trained nothing."""

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Within it, losses and scores go to the loggers, too."""
        yield


class FolderWriter(Writer):
    """Writes to the folder of a run, and to loggers by their names.

    Args:
        folder: of the run.
        config: its recipe, of plain values.
        names: of the loggers.
        seeds: of the members, by which their metrics are named.
    """

    def __init__(
        self, folder: RunFolder, config: Mapping[str, Any], *, names: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> None:
        self._folder, self._config, self._names, self._seeds = folder, config, names, seeds
        self._loggers: list[Logger] = []

    @property
    def complete(self) -> bool:
        """True once the results are written."""
        return (self._folder.path / "results.json").exists()

    def newest(self) -> dict[str, Any] | None:
        """The state in the newest checkpoint that is whole; the names of others are in ``damaged``."""
        state, self.damaged = self._folder.newest()
        for name in self.damaged:
            self.note("damaged", checkpoint=name)
        return state

    def note(self, event: str, **values: Any) -> None:
        """Append to the events, and send lists of numbers, one per member, to the loggers."""
        self._folder.note(event, **values)
        metrics = {
            f"{name}/seed{seed}": float(number)
            for name, numbers in values.items()
            if isinstance(numbers, list)
            for seed, number in zip(self._seeds, numbers, strict=True)
        }
        for logger in self._loggers if metrics else ():
            logger.log(metrics, values["step"])

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        self._folder.save(state)

    def finish(self, step: int, histories: Sequence[History]) -> None:
        """Write ``results.json``."""
        results = [history.result() for history in histories]
        self._folder.note("finished", step=step, results=results)
        self._folder.write("results.json", {"config": finite(self._config), "results": results})

    def discard(self) -> None:
        """Take away what was written of a run that has trained nothing."""
        self._folder.discard()

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Within it, losses and scores go to the loggers, too."""
        self._loggers = loggers(self._names, self._folder.path, self._config)
        try:
            yield
        finally:
            for logger in self._loggers:
                logger.close()

"""Writers of a run, one for each process: to its folder and its loggers in the first, and nowhere in the others."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainability.errors import FolderError
from trainability.training.folder import RunFolder
from trainability.training.loggers import Logger, loggers
from trainability.training.places import Existing

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Writer:
    """Writes nothing: what the processes of a run other than the first have in place of a `FolderWriter`."""

    damaged: Sequence[str] = ()  # checkpoints that were set aside

    def newest(self) -> dict[str, Any] | None:
        """The state to go on from."""
        return None

    def note(self, event: str, **values: Any) -> None:
        """Write down what happened at a step."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint."""

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file."""

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
        members: names of the networks, by which their metrics are named.
    """

    def __init__(
        self, folder: RunFolder, config: Mapping[str, Any], *, names: Sequence[str] = (), members: Sequence[str] = ()
    ) -> None:
        self._folder, self._config, self._names, self._members = folder, config, names, members
        self._loggers: list[Logger] = []

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
            f"{name}/{member}": float(number)
            for name, numbers in values.items()
            if isinstance(numbers, list) and not any(isinstance(number, dict) for number in numbers)
            for member, number in zip(self._members, numbers, strict=True)
        }
        for logger in self._loggers if metrics else ():
            logger.log(metrics, values["step"])

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        self._folder.save(state)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self._folder.write(name, content)

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


@contextmanager
def open_writer(
    fabric: "Fabric",
    path: Path,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    existing: Existing,
    *,
    loggers: Sequence[str] = (),
    members: Sequence[str] = (),
) -> Iterator[Writer]:
    """Open the writer of this process: that of a folder in the first, and one that writes nothing in the others.

    Raises:
        FolderError: the folder cannot be used; in every process, or the others would wait.
    """
    folder, refusal = None, None
    if fabric.is_global_zero:
        try:
            folder = RunFolder(path, config, environment, existing)
        except FolderError as error:
            refusal = str(error), error.code
        except OSError as error:
            refusal = f"{path} cannot be written to: {error.strerror}", "out-not-writable"
    if refusal := fabric.broadcast(refusal):
        message, code = refusal
        raise FolderError(message, code=code)
    if folder is None:
        yield Writer()
        return
    with folder:
        writer = FolderWriter(folder, config, names=loggers, members=members)
        with writer.logging():
            yield writer

"""The program: ``trainability`` or ``python -m trainability``."""

import io
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Output(io.FileIO):
    """A stream that nobody may be reading: what cannot be written is dropped, and the work goes on.

    Attributes:
        failure: why, where it was no reader that had gone but a full disk, for example.
    """

    failure: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write what can be written; tell that all of it was."""
        try:
            return super().write(data)
        except BrokenPipeError:
            pass
        except OSError as error:
            self.failure = error
        return memoryview(data).nbytes


def _open_output() -> Output:
    """Make standard output and error such streams; closed ones lead nowhere, or files of a run would take their place.

    Return standard output.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    output, error = Output(1, "w", closefd=False), Output(2, "w", closefd=False)
    for name, raw in (("stdout", output), ("stderr", error)):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        lines = name == "stderr" or raw.isatty()
        stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)
        setattr(sys, name, stream)
    return output


def main() -> None:
    """Run the command line, or say what it needs."""
    # Until a command takes over, nothing has begun that an interrupt could leave half done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(130))
    output = _open_output()
    try:
        from trainability.cli import run
    except ImportError as error:
        needs = "the command line needs: pip install 'trainability[experiments]'"
        print(f"trainability: {error.name} is missing; {needs}", file=sys.stderr)
        raise SystemExit(2) from None
    code = run()
    sys.stdout.flush()
    if output.failure is not None:
        print(f"trainability: standard output cannot be written to: {output.failure.strerror}", file=sys.stderr)
        code = 2
    raise SystemExit(code)


if __name__ == "__main__":
    main()

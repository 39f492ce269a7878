"""The program: ``trainability`` or ``python -m trainability``."""

import os
import signal
import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    # Until a command takes over, nothing has begun that an interrupt could leave half done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(130))
    try:
        from trainability.cli import run
    except ImportError as error:
        needs = "the command line needs: pip install 'trainability[experiments]'"
        print(f"trainability: {error.name} is missing; {needs}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(run())


if __name__ == "__main__":
    main()

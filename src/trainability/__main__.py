"""The program: ``trainability`` or ``python -m trainability``."""

import signal
import sys


def main() -> None:
    """Run the command line, or say what it needs; Ctrl-C and SIGTERM end it with 130 and no traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            from trainability.cli import run
        except ImportError as error:
            needs = "the command line needs: pip install 'trainability[experiments]'"
            print(f"trainability: {error.name} is missing; {needs}", file=sys.stderr)
            code = 2
        else:
            code = run()
    except KeyboardInterrupt:
        code = 130
    for number in (signal.SIGINT, signal.SIGTERM):  # nothing is left that could be lost
        signal.signal(number, signal.SIG_DFL)
    raise SystemExit(code)


if __name__ == "__main__":
    main()

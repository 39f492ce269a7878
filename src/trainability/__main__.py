"""The program: ``trainability`` or ``python -m trainability``."""

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from trainability.cli import run
    except ImportError as error:
        needs = "the command line needs: pip install 'trainability[experiments]'"
        print(f"trainability: {error.name} is missing; {needs}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(run())


if __name__ == "__main__":
    main()

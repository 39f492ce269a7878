"""The program: ``trainability`` or ``python -m trainability``."""

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from trainability.cli import app
    except ImportError as error:
        print(
            f"trainability: {error.name} is missing; the command line needs: pip install 'trainability[experiments]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    app()


if __name__ == "__main__":
    main()

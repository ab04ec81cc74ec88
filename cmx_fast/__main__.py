"""``cmx`` and ``python -m cmx_fast``, for launchers that take a module: ``torchrun -m cmx_fast train ...``."""

import sys

from cmx_fast._extras import TRAIN, MissingExtraError, require_all


def main() -> None:
    """Run the command line, or say what it needs that is not installed."""
    try:
        require_all(TRAIN, "train")
    except MissingExtraError as error:
        sys.exit(f"cmx: {error}")
    from cmx_fast import cli

    cli.main()


if __name__ == "__main__":
    main()

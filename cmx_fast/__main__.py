"""``python -m cmx_fast``, for launchers that take a module: ``torchrun -m cmx_fast train ...``."""

from cmx_fast.cli import main

if __name__ == "__main__":
    main()

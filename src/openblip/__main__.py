"""`python -m openblip`, for where the `openblip` script is not on the path."""

from openblip.cli.entry import main

if __name__ == "__main__":
    raise SystemExit(main())

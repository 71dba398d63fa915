"""Run the command line by `python -m hgrn`, and so by `torchrun -m hgrn`."""

from hgrn.cli import main

raise SystemExit(main())

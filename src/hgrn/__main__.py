"""`python -m hgrn`, and so `torchrun -m hgrn`."""

from hgrn.cli import main

raise SystemExit(main())

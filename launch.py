"""The entry: `python launch.py` for one run, `python launch.py -m KEY=A,B` for a sweep, `--help` for the rest."""

import os
import sys

if int(os.environ.get("RANK") or 0) > 0:  # under torchrun rank 0 plans; the others execute what it froze
    from skipsweep import torchrun

    sys.exit(torchrun.execute_as_worker())

from skipsweep.sweep import entry

if __name__ == "__main__":
    try:
        entry.main()
    finally:
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            from skipsweep import torchrun

            torchrun.let_go()  # also after --help, which Hydra answers

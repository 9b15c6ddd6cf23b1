"""The schema of a run: one dataclass per choice, with meaning, unit and neutral default under every field.

Two rules make identities work (see `sweep/identity.py`):

* A default is the *neutral* element (the feature switched off) and never moves. Chosen values live in `conf/`.
* What has no neutral value is `MISSING` here, set in `conf/`, and always part of a run's identity.

What changes a result stands in `Recipe`; where and how a run is executed and recorded stands in `Setup`. The place in
the tree decides; there is no list of exclusions to forget an entry in.

A group whose choices have different fields is a tagged union: a base class with a `name`, one subclass per choice.
Hydra refuses a field of another choice when it composes.

Whatever is defined here is imported from `skipsweep.config`, new choices too.
"""

from skipsweep.config.base import MISSING, choices, location
from skipsweep.config.data import *
from skipsweep.config.execution import *
from skipsweep.config.gates import *
from skipsweep.config.plain import defaults, from_dict, leaves, to_dict
from skipsweep.config.readout import *
from skipsweep.config.run import *
from skipsweep.config.sweep import *
from skipsweep.config.training import *
from skipsweep.config.trunk import *

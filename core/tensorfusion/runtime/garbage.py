"""When the interpreter looks for cyclic garbage.

The caches of a control plane hold millions of small objects that live long and form no cycles.
The interpreter's own rules would stop the whole program to walk the young ones for a tenth of a
second, and all of them for seconds. Here the young are walked in small portions, and all of them
once in a long while; everything without cycles is freed at once in any case.
"""

import gc
import threading

from tensorfusion.clock import Clock

YOUNG_OBJECTS = 5_000
"""New objects that are walked at once: about 4 ms, during which nothing else runs."""
NEVER = 1_000_000_000
FULL_SECONDS = 3600.0
"""Between two walks over everything: about 1 s for a million objects."""


def configure() -> None:
    """Walk young objects in small portions and older ones only in `sweep`."""
    gc.set_threshold(YOUNG_OBJECTS, NEVER, NEVER)


def sweep(stop: threading.Event, clock: Clock) -> None:
    """Walk all objects every `FULL_SECONDS` until ``stop`` is set."""
    while not clock.wait(stop, FULL_SECONDS):
        gc.collect()


def keep_what_is_there() -> None:
    """Walk what a program has loaded by now no more: it lives as long as the program.

    Modules and classes are some hundred thousand objects, a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()


def skip_last_walk() -> None:
    """Spare a process that ends the interpreter's last walk over everything."""
    gc.freeze()

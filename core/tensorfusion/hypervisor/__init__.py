"""The node side: discovers devices, prepares workers, samples and meters.

One `Hypervisor` serves the nodes that one backend stands for: a single machine, or all machines
of a simulation. It meets vendors only through `tensorfusion.spi.backend`.
"""

from tensorfusion.hypervisor.hypervisor import Hypervisor

__all__ = ["Hypervisor"]

"""Protocols that plugins implement, and the values that cross them.

A plugin imports from here, from `tensorfusion.model`, `tensorfusion.api`, `tensorfusion.units`
and from nothing else of the core. Every value that crosses is frozen and in base units.
"""

SPI_VERSION = 1
"""Grows when a Protocol changes in a way that an existing plugin can notice."""

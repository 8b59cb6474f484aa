"""When who works and who idles is looked at: once a second, and for all who look at one moment.

A reading is dear to take apart, so those who go by it do so in the same second's first pass and
share the work.
"""

from typing import Final

LOOK_SECONDS: Final = 1.0
"""Pause between two looks."""
RUNG_SECONDS: Final = 2 * LOOK_SECONDS
"""The longest pause for who is rung when a look is due, if nobody rings."""


def look_is_due(now: float, last: float) -> bool:
    """Whether another period has begun since the last look; seconds of one clock."""
    return now // LOOK_SECONDS != last // LOOK_SECONDS

"""The `tensorfusion` program."""

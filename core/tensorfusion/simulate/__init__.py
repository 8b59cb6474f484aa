"""Offline replay of the placement engine: tasks arrive on a fleet described by files."""

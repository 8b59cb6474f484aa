"""Reconcilers, one file per kind; each is level-triggered and idempotent."""

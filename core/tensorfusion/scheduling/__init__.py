"""The scheduling cycle: pending pods in, bindings out, decisions on disk."""

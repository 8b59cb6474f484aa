"""Pure domain: devices, demands, ledger, quota and the placement engine."""

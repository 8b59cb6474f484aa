"""The recommendation loop: history in, proposals out, applied through the ledger."""

"""Real servers for tests, started on loopback and ended by their process id."""

"""Process life cycle: threads, work queues, reconcile loops, settings, logging, health, events."""

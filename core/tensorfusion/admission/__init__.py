"""Admission as pure functions: what a pod asks for, and what is made of it."""

"""Grafana dashboards and alert rules, built from one declaration."""

"""Telemetry: what is kept of what happened, as metrics for Prometheus, as a history, and as the last lines of the log."""

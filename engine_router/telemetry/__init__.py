"""Telemetry: what is kept of what happened, as metrics for Prometheus and as a history."""

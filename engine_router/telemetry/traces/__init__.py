"""Traces: spans of requests and swaps, and their way to a collector of OpenTelemetry's."""

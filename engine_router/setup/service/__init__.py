"""The router as a service of the operating system: systemd, launchd, or Windows's task scheduler."""

"""Monitoring: loggers, the terminal, guards."""

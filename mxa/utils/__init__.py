"""Errors, files, processes and configuration: what every room may use."""

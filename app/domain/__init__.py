"""Frozen values of the service: ids, models, requests, jobs, results. No I/O, no clock, no torch."""

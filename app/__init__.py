"""The service: HTTP in front, Redis as truth and job transport, one worker process per device."""

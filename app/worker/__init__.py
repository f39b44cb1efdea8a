"""The worker: reserves jobs, groups them, runs them on its device, and commits what came of it."""

"""Jobs in Redis: accepted once durable, delivered at least once, with an effect exactly once.

A job goes from its tenant's waiting set (`JobStore.accept`) to its model's stream (released round-robin over tenants),
is started by a worker under a new fence (`JobQueue.reserve`), and ended by one script that checks the fence and whether
it was cancelled (`JobQueue.commit` or `fail`). A worker holds it on a lease; when that runs out, it is queued again
(`JobReclaimer`). `JobWaiter` wakes whoever waits for it. What a crash leaves between two slots of a Redis Cluster is
found again through the model's set of open jobs (`JobSweeper`).
"""

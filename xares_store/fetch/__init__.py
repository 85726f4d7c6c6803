"""Download a task's published audio shards; the door is :func:`xares_store.fetch.tasks.fetch_task`."""

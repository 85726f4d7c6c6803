"""Audio of one's own as a task: a folder, a manifest or a Hugging Face dataset becomes shards and a task file."""

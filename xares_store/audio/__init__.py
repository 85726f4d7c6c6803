"""Audio in: shards, decoding, cropping and length-aware batches."""

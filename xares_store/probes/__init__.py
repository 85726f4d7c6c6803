"""Probes: what is trained or looked up on stored embeddings."""

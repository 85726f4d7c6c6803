"""Runs of the LLM-projector probe: one training for several tasks, text written about their test clips, and its scores."""

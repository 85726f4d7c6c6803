"""The LLM-projector probe: stored frames, a projector, and a language model that writes text about them."""

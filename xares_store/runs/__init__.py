"""The two phases: embed and evaluate."""

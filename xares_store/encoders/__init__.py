"""Encoders: the contract, the loader, the conformance check and the built-in ones."""

"""Benchmark frozen audio encoders in two phases: embed once into a store, evaluate as often as you like."""

__version__ = "0.1.0"

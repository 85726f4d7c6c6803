"""Metrics: functions of arrays and text, nothing else."""

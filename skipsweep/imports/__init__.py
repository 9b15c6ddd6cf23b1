"""Logs of other programs, turned into run folders that reports can read."""

"""Servers that the tests talk to, on loopback only."""

"""Shem: a decentralised marketplace for compute."""

__version__ = "0.1.0"

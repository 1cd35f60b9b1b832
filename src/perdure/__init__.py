"""perdure: a durable execution server, wire-compatible with the Temporal API."""

__version__ = "0.1.0"

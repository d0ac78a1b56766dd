"""Carries one request, in microseconds.

What belongs here: the path from a decoded request to its answer, and the versions that run it.
What does not: Redis, collectors, disk, foreign libraries. A process that has its models and one
Snapshot serves on, whatever else is gone. May import core, ports, settings and telemetry.
Everything here runs on the event loop unless its docstring names a thread.
"""

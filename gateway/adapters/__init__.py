"""Touches the world: one foreign library or one kind of storage in each file.

What belongs here: implementations of `gateway.ports`, which turn foreign errors into ours at the
border. What does not: decisions. May import core, ports, settings and telemetry; only `app` and
the command line import this room.
"""

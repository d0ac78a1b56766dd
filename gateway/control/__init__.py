"""Changes what is served, in seconds.

What belongs here: following the store, committing to it, preparing artifacts, exporting
telemetry. What does not: carrying a request, speaking a wire. Foreign systems are reached through
`gateway.ports`. May import core, ports, settings, telemetry and tasks.
"""

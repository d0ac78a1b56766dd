"""Tiltyard: a model-serving gateway with built-in experimentation.

The rooms, top down (imports go down only):

- `app`, `__main__`: build every room, own start, stop and the clock.
- `doors`: speak protocols; translate only.
- `control`: changes what is served, in seconds; speaks to foreign systems through ports.
- `serving`: carries one request, in microseconds; needs only its models and a Snapshot.
- `core`: decides; pure functions and immutable data.
- `adapters`: touch the world, one foreign library each.
- `ports`, `settings`, `telemetry`, `tasks`: four pages that several rooms share.
"""

__version__ = "0.1.0"

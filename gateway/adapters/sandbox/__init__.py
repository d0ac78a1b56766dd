"""The sandbox: a version is taken apart and run in a process that can do nothing else.

This side: `inspector` keeps the port, `nursery` holds the process that forks, `verdict` makes a
report of what was told. The other side, which no process that serves or controls ever imports:
`forking` and `examining`, with `confining`, `landlock` and `filtering`, and the checks in
`static_checks`, `trials` and `comparisons`. `wire` is what goes between them.
"""

from gateway.adapters.sandbox.inspector import SandboxInspector

__all__ = ["SandboxInspector"]

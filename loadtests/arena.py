"""One place for all measurements: it drives a contestant for one slice and notes what it cost."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from loadtests import requests
from loadtests.closed import GENERATOR_CORE, SLACK_S, closed, on_core
from loadtests.contestants import (
    VARIANTS,
    Contestant,
    Tiltyard,
    World,
    start_bare,
    start_tiltyard,
)
from loadtests.requests import Wire
from loadtests.servers import NotReady, ask
from loadtests.stats import PERCENTS, chosen, rotated

HERE: Final = Path(__file__).resolve().parent
WARM_S: Final = 1
RECORD_GRACE_S: Final = 0.5
PEAK_CONNECTIONS: Final = 32


class OutOfTime(Exception):
    """The budget is spent; what was measured so far is reported."""


@dataclass
class Arena:
    """What a run has at hand, and what it found."""

    world: World
    models: Sequence[str]
    variants: Sequence[str]
    peers: Sequence[str]
    rounds: int
    slice_s: int
    idle_s: float
    generator_rps: float
    """The highest rate that the open-loop generator was seen to keep."""
    deadline: float
    slices: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    running: dict[str, Contestant] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    _plans: dict[tuple[str, str, str, int], Path] = field(default_factory=dict)

    def contestant(self, name: str) -> Contestant:
        """The bare endpoint or a Tiltyard, started when it is first asked for."""
        if name not in self.running:
            if name == "bare":
                self.running[name] = start_bare(self.world)
            else:
                models = tuple(model for model in self.models if model != "swap")
                self.running[name] = start_tiltyard(self.world, name, models, VARIANTS[name])
        return self.running[name]

    def is_up(self, name: str) -> bool:
        """Whether a contestant can be measured; who does not start is noted once."""
        known = name == "bare" or name in VARIANTS
        if known and name not in self.running and name not in self.missing:
            try:
                self.contestant(name)
            except NotReady as error:
                self.missing.add(name)
                self.note(f"{name} could not be measured: {error}")
        return name not in self.missing

    def adopt(self, contestant: Contestant) -> Contestant:
        """Take one that a scenario started; it is stopped at the end if not before."""
        self.running[contestant.name] = contestant
        return contestant

    def dismiss(self, contestant: Contestant) -> None:
        """Stop one now."""
        self.running.pop(contestant.name, None)
        contestant.stop()

    def plan(self, contestant: Contestant, model: str, wire: Wire) -> Path:
        """The requests for it, checked once: every answer must be the model's own.

        Raises:
            NotReady: an answer is wrong, so that its speed says nothing.
        """
        key = (contestant.name, model, wire, contestant.port)
        if key not in self._plans:
            self._verify(contestant, model, wire)
            path = self.world.folder / f"{contestant.name}-{model}-{wire}"
            made = requests.plan(model, contestant.target(model), wire)
            self._plans[key] = requests.save(made, path)
            closed(self._plans[key], contestant.port, PEAK_CONNECTIONS, WARM_S)
        return self._plans[key]

    def closed(
        self,
        contestant: Contestant,
        model: str,
        *,
        connections: int = PEAK_CONNECTIONS,
        wire: Wire = "json",
        **fields: Any,
    ) -> dict[str, Any]:
        """One closed-loop slice."""
        plan = self.plan(contestant, model, wire)
        return self._measure(
            contestant,
            lambda: closed(plan, contestant.port, connections, self.slice_s),
            {"model": model, "wire": wire, "connections": connections, **fields},
        )

    def open(
        self,
        contestant: Contestant,
        model: str,
        rate: float,
        *,
        options: Sequence[str] = (),
        beside: Callable[[], None] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """One open-loop slice of JSON; `beside` runs while the load does, in this process."""
        plan = self.plan(contestant, model, "json")
        seconds = fields.pop("seconds", self.slice_s)
        words = [sys.executable, str(HERE / "open_loop.py"), "--plan", str(plan)]
        words += ["--port", str(contestant.port), "--rate", f"{rate:.1f}"]
        words += ["--seconds", str(seconds), *options]

        def run() -> dict[str, Any]:
            with subprocess.Popen(
                on_core(GENERATOR_CORE, words), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as generator:
                try:
                    if beside is not None:
                        beside()
                    out, err = generator.communicate(timeout=seconds + SLACK_S)
                finally:
                    generator.kill()
            if generator.returncode:
                raise RuntimeError(f"The generator failed: {err.decode()[-800:]}")
            found: dict[str, Any] = json.loads(out)
            return found

        return self._measure(contestant, run, {"model": model, "wire": "json", **fields})

    def peak(self, contestant: Contestant, model: str, wire: Wire = "json") -> float:
        """Requests a second that it reached in a closed loop; measured now if it was not yet."""
        found = chosen(
            self.slices,
            contestant=contestant.name,
            model=model,
            wire=wire,
            connections=PEAK_CONNECTIONS,
        )
        while len(found) < 2:
            fields = {"scenario": "own-peak", "round": len(found)}
            found = [*found, self.closed(contestant, model, wire=wire, **fields)]
        return median(one["rps"] for one in found)

    def alternate(self, names: Sequence[str], measure: Callable[[str, int], object]) -> None:
        """Call `measure(name, round)` for all in every round, the order turned each time.

        Names are contestants, with more behind a slash, or a scenario's own words. A contestant
        that does not start is left out.
        """
        able = [name for name in names if self.is_up(name.partition("/")[0])]
        for turn in range(self.rounds):
            for name in rotated(able, turn):
                self.check_time()
                measure(name, turn)

    def check_time(self) -> None:
        """Raise `OutOfTime` when the budget is spent."""
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def note(self, text: str) -> None:
        """Say something that the results must not hide."""
        print(f"  note: {text}", flush=True)
        self.notes.append(text)

    def close(self) -> None:
        """Stop everybody."""
        for contestant in list(self.running.values()):
            self.dismiss(contestant)

    def _measure(
        self, contestant: Contestant, run: Callable[[], dict[str, Any]], fields: dict[str, Any]
    ) -> dict[str, Any]:
        """Run a slice between two looks at the tree's CPU and the sink's count."""
        contestant.server.check()
        logs = isinstance(contestant, Tiltyard)
        records, before = self._records() if logs else 0, contestant.server.cpu_seconds()
        found = run()
        if logs:
            # What is sent after the answers belongs to their cost.
            time.sleep(RECORD_GRACE_S)
            found["records"] = self._records() - records
        used = contestant.server.cpu_seconds() - before
        done = found["good"] + found["refused"]
        if not done:
            found.update(dict.fromkeys(PERCENTS))
        one = {
            **fields,
            "contestant": contestant.name,
            **found,
            "cpu_us": used / done * 1e6 if done else None,
        }
        self.slices.append(one)
        shown = {name: one[name] or 0.0 for name in ("p50_us", "p99_us", "cpu_us")}
        print(
            f"  {one['scenario']:10} {one['model']:11} {one['wire']:6} {contestant.name:14} "
            f"{one['rps']:9.0f}/s  p50 {shown['p50_us']:8.0f} us  p99 {shown['p99_us']:8.0f} us  "
            f"cpu {shown['cpu_us']:7.1f} us  refused {one['refused']}  errors {one['errors']}",
            flush=True,
        )
        return one

    def _records(self) -> int:
        _, _, answer = ask(self.world.sink_port, "GET", "/count")
        count: int = json.loads(answer)["records"]
        return count

    def _verify(self, contestant: Contestant, model: str, wire: Wire) -> None:
        target = contestant.target(model)
        arrays = requests.rows(model)
        both = [
            requests.expected(self.world.store / model / version / "model.onnx", arrays)
            for version in ("1", "2")
        ]
        for i, array in enumerate(arrays):
            headers, content = requests.body(model, array, target.dialect, wire)
            headers[requests.UNIT_HEADER] = f"check-{i}"
            status, said, answer = ask(target.port, "POST", target.path, content, headers)
            if status != 200:
                said_so = f"{status}: {answer[:300]!r}"
                raise NotReady(f"{contestant.name} answers {model} {wire} with {said_so}")
            found = requests.answered(target.dialect, said, answer)
            if not any(requests.agree(found, wanted[i]) for wanted in both):
                raise NotReady(f"{contestant.name} answers {model} {wire} wrongly.")

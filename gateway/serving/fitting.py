"""Fitting: how long runs take, learned from the runs themselves, and what follows from it.

Time is fitted as a straight line over size (rows, or elements where rows differ in extent), with
old runs forgotten. From the line follow where a version runs (on the event loop or in a thread),
how much may share a run, and how long those in the queue will wait.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

WEIGHT: Final = 0.05
"""Of a new run in the fit, once there were some."""
LEAN: Final = 0.03
"""Spread of sizes, as a share of their mean square, that weighs as much as the trusted shape."""
OUTLIER: Final = 4.0
"""A run that took so many times what was predicted is cut to that, the first time."""
LEAST_NS: Final = 50_000.0
"""Runs below this are never cut: their predictions are too short to judge by."""
RUN_NS: Final = 60_000.0
"""About what a run costs beside the model: a turn of the loop, or a way to a thread and back."""
SAVING: Final = 0.05
"""Of the time per row; when sharing saves less, requests had better not wait for each other. Large
models are even slower over many rows, for these leave no cache to each other."""
BEYOND: Final = 4
"""The line is believed up to so many times the largest size that was ever run."""
OVER: Final = 1.5
"""A run beyond its target by this much, twice in turn, shrinks what may share a run."""
SHRINK: Final = 0.8
STALL_NS: Final = 50_000_000
STALLS: Final = 3
"""So many runs on the event loop in turn that take so long are enough to end its running there."""
LEAVE_AFTER: Final = 8
"""Runs on the loop of which even the fastest took too long; a busy machine disturbs some only."""
RETURN_AFTER: Final = 32
"""Runs in threads of which the fastest is asked whether the loop would do."""
BACK: Final = 0.5
"""A version comes back to the loop when it would take this share of what is allowed there."""
HOLD_NS: Final = 1_000_000_000
"""It stays in threads for so long, and twice as long each time it had to leave soon again."""
MAX_HOLD_NS: Final = 60 * HOLD_NS
ENOUGH: Final = 64
"""Runs of which each is learned from, before a sample will do."""
SAMPLE: Final = 3
LOOK_EVERY: Final = 8
"""Runs learned from between two times that bounds are drawn from the fit again."""


class Fit:
    """A line `ns = slope * size + base` through the runs seen, the newest weighing most.

    Runs of one size say nothing of the slope; then the line keeps a shape that is trusted. Sizes
    are 1 or more.
    """

    __slots__ = (
        "_covariance",
        "_cut",
        "_size",
        "_time",
        "_trusted_base",
        "_trusted_slope",
        "_variance",
        "base",
        "runs",
        "seen",
        "slope",
    )

    def __init__(self) -> None:
        """Know nothing, and predict nothing: 0 for every size."""
        self.slope = 0.0
        self.base = 0.0
        self.runs = 0
        self.seen = 0
        self._size = self._time = self._variance = self._covariance = 0.0
        self._cut = OUTLIER
        self._trusted_slope, self._trusted_base = 1.0, 1.0

    def observe(self, size: int, ns: float) -> None:
        """Learn from one run. A single outlier moves little, one that stays is believed."""
        self.runs = runs = self.runs + 1
        self.seen = max(self.seen, size)
        if runs > 1:
            most = self._cut * (self.slope * size + self.base) + LEAST_NS
            if ns > most:
                ns = most
                self._cut *= 2
            else:
                self._cut = OUTLIER
        weight = 1 / runs if runs * WEIGHT < 1 else WEIGHT
        apart, off = size - self._size, ns - self._time
        self._size = mean = self._size + weight * apart
        self._time = time = self._time + weight * off
        rest = 1 - weight
        self._variance = variance = rest * (self._variance + weight * apart * apart)
        self._covariance = covariance = rest * (self._covariance + weight * apart * off)
        # With little spread the line takes the shape that is trusted, at the height that is seen.
        lean = LEAN * mean * mean
        usual = time * self._trusted_slope / (self._trusted_slope * mean + self._trusted_base)
        slope = (covariance + lean * usual) / (variance + lean)
        self.slope = slope = min(max(slope, 0.0), time / mean)  # so that the base is above 0
        self.base = time - slope * mean

    def predict(self, size: float) -> float:
        """Nanoseconds of a run of this size."""
        return self.slope * size + self.base

    def trust(self) -> None:
        """Take what was seen by now for the shape of the line, where times say nothing of it."""
        if self.slope + self.base > 0:
            self._trusted_slope, self._trusted_base = self.slope, self.base

    def largest(self, ns: float) -> float:
        """The size that runs in this time; without end if time does not depend on size."""
        if self.slope <= 0:
            return float("inf")
        return (ns - self.base) / self.slope

    def scale(self, factor: float) -> None:
        """Go on from a line so many times as high, as if every run had taken that."""
        self.slope *= factor
        self.base *= factor
        self._time *= factor
        self._covariance *= factor


class Targets(Struct, frozen=True):
    """What runs may take, in nanoseconds.

    `inline_ns` bounds one request on the event loop and below 0 keeps every run off it;
    `inline_run_ns` and `run_ns` bound what shares a run on the loop and in a thread. `jobs` is how
    many usual requests may share one anyhow.
    """

    inline_ns: float
    inline_run_ns: float
    run_ns: float
    jobs: int = 1


class Pace:
    """Where a version runs, and how much of it at once. Asked and told on the event loop only."""

    __slots__ = (
        "_alert_ns",
        "_guard",
        "_hold_ns",
        "_inline_since_ns",
        "_not_before_ns",
        "_over",
        "_recent",
        "_runs",
        "_stalls",
        "_targets",
        "_typical",
        "fit",
        "inline",
        "most",
    )

    def __init__(self, targets: Targets, timings: Sequence[tuple[int, int]] = ()) -> None:
        """Start from what warming timed.

        Args:
            targets: what runs may take.
            timings: (size, nanoseconds), the smallest first; without any, runs start in threads.
        """
        self.fit = Fit()
        for size, ns in timings:
            self.fit.observe(size, ns)
        self.fit.trust()
        self._targets = targets
        self._typical = float(timings[0][0]) if timings else 1.0
        self.inline = bool(timings) and self._alone_ns() <= targets.inline_ns
        self._guard = float("inf")
        self._over = 0
        self._runs = 0
        self._recent: deque[float] = deque(maxlen=LEAVE_AFTER if self.inline else RETURN_AFTER)
        self._stalls = 0
        self._hold_ns = HOLD_NS
        self._not_before_ns = 0
        self._inline_since_ns = 0
        self.most = 1
        self._bound()

    def fits_loop(self, size: int) -> bool:
        """Whether one request of this size may run on the event loop, as far as is known."""
        fit = self.fit
        known = size <= BEYOND * fit.seen
        return known and fit.predict(size) <= self._targets.inline_run_ns

    def each_ns(self) -> float:
        """Nanoseconds for each unit of size that waits, where runs are as large as they may be."""
        largest = min(self.most, self._typical * self._targets.jobs)
        return self.fit.slope + self.fit.base / max(largest, 1.0)

    def ran(self, size: int, jobs: int, ns: int, now_ns: int) -> bool:
        """Learn from a run; whether bounds or the place to run may have changed.

        Learning costs as much as a small model's run, so on the loop every fourth run will do once
        enough is known.
        """
        self._runs = runs = self._runs + 1
        if ns > self._alert_ns:
            if self._took_too_long(size, jobs, ns, now_ns):
                return True
        elif self._over:
            self._over = self._stalls = 0
        if runs & SAMPLE and runs > ENOUGH and self.inline:
            return False
        fit = self.fit
        fit.observe(size, ns)
        self._typical += WEIGHT * (size / jobs - self._typical)
        if size >= self.most:
            self._guard += max(self._typical, 0.02 * self._guard)
        predicted = fit.predict(size)
        alike = ns * self._alone_ns() / predicted if predicted else float(ns)
        alike = max(alike, ns / jobs)  # a share of the run at least, whatever the line says
        moved = self._turned_slow(alike, now_ns) if self.inline else self._came_back(alike, now_ns)
        if moved or fit.runs % LOOK_EVERY == 0:
            self._bound()
            return True
        return False

    @property
    def is_curious(self) -> bool:
        """Whether the next run will be learned from, unless it takes too long."""
        runs = self._runs + 1
        return not runs & SAMPLE or runs <= ENOUGH or not self.inline

    def _alone_ns(self) -> float:
        """What a usual request takes by itself."""
        return self.fit.predict(self._typical)

    def _bound(self) -> None:
        target = self._targets.inline_run_ns if self.inline else self._targets.run_ns
        self._alert_ns = OVER * target
        most = min(self.fit.largest(target), self._guard, self._worthwhile())
        self.most = int(min(max(most, self._typical, 1.0), _NO_END))

    def _worthwhile(self) -> float:
        """The size from which on a larger run saves next to nothing of what each run costs."""
        fit = self.fit
        if fit.slope <= 0:
            return float("inf")
        return (fit.base + RUN_NS) / (SAVING * fit.slope)

    def _took_too_long(self, size: int, jobs: int, ns: int, now_ns: int) -> bool:
        """Act on a run far beyond its target, if it was not the only one."""
        self._over += 1
        self._stalls += ns // STALL_NS
        if self.inline and self._stalls >= STALLS:
            self._leave_loop(now_ns)
        elif self._over > 1 and jobs > 1:
            self._guard = max(SHRINK * size, 1.0)
        else:
            return False
        self._bound()
        return True

    def _turned_slow(self, alike: float, now_ns: int) -> bool:
        """Whether the loop must be left, where usual requests take `alike`, also the fastest."""
        recent, allowed = self._recent, self._targets.inline_ns
        recent.append(alike)
        if alike <= allowed or len(recent) < LEAVE_AFTER or min(recent) <= allowed:
            return False
        self._leave_loop(now_ns)
        return True

    def _leave_loop(self, now_ns: int) -> None:
        if now_ns - self._inline_since_ns > MAX_HOLD_NS:
            self._hold_ns = HOLD_NS
        self._not_before_ns = now_ns + self._hold_ns
        self._hold_ns = min(self._hold_ns * 2, MAX_HOLD_NS)
        self._settle(inline=False)

    def _came_back(self, alike: float, now_ns: int) -> bool:
        """Whether the loop would do: asked of the fastest run of late, which waited for no core."""
        recent = self._recent
        recent.append(alike)
        if now_ns < self._not_before_ns or len(recent) < RETURN_AFTER:
            return False
        best = min(recent)
        if best > BACK * self._targets.inline_ns:
            return False
        if (alone_ns := self._alone_ns()) > 0:
            self.fit.scale(best / alone_ns)
        self._inline_since_ns = now_ns
        self._settle(inline=True)
        return True

    def _settle(self, *, inline: bool) -> None:
        self.inline = inline
        self._guard = float("inf")
        self._over = self._stalls = 0
        self._recent = deque(maxlen=LEAVE_AFTER if inline else RETURN_AFTER)


_NO_END: Final = 1 << 60

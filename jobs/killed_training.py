"""A training that is killed again and again, and continued by the same command."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from jobs.errors import MachineFault
from jobs.kill_plan import PlannedKill
from jobs.trace import read_trace
from jobs.training_process import GIVEN_UP, MOST_FALSE_STARTS, POLL_S, TrainingProcess
from jobs.victims import Found, candidates

MOST_DELAY_S = 0.5
"""Of a kill after its step is in the record."""
PREPARING = (".get_metadata", ".init_train_context")
"""What Ray calls a worker that it has not given its training yet; where it dies, Ray starts another
by itself, and nobody is told. Names of a cluster's workers do not say it."""
SAVING_STEPS = 12
"""How many steps a kill waits for a checkpoint to be written, before it comes anyway."""


@dataclass(kw_only=True)
class Kill:
    """One kill, as it came."""

    what: str
    moment: str
    step: int
    """How many steps were in the record."""
    at_s: float
    """Since 1970."""
    to_next_step_s: float | None = None
    """Until one was made that the record did not have; None where there was none."""
    typed_again: bool = False
    """Whether the driver was gone, too, and the command had to be typed again."""


Tell = Callable[[str], None]


@dataclass(kw_only=True)
class KilledTraining:
    """Carries out a plan of kills on one training.

    Args:
        training: not yet started.
        patience_s: how long the training may be without a new step before it counts as hanging.
        overrides: of one start of the driver after the other, in turn.
        tell: shows a line.
    """

    training: TrainingProcess
    patience_s: float
    overrides: Sequence[Sequence[str]]
    tell: Tell
    kills: list[Kill] = field(default_factory=list)
    _seen_step: int = 0
    _seen_s: float = field(default_factory=time.monotonic)
    _started_s: float = field(default_factory=time.monotonic)
    _start_takes_s: float = 10.0
    _false_starts: int = 0
    _kills_at_start: int = 0

    def run(self, plan: Sequence[PlannedKill]) -> list[Kill]:
        """Train to the last step with these kills; the kills that came."""
        self._start()
        for planned in plan:
            if not self._wait(planned) or not self._kill(planned):
                break
        while self._is_running():
            time.sleep(POLL_S)
        self._measure()
        return self.kills

    def _measure(self) -> None:
        """How long after each kill the next step was made that the record did not have yet."""
        for kill in self.kills:
            times_s = (each.time_ms / 1e3 for each in read_trace(str(self.training.folder)))
            later_s = [each for each in times_s if each > kill.at_s]
            kill.to_next_step_s = min(later_s) - kill.at_s if later_s else None

    def _start(self) -> None:
        self.training.start(self.overrides[self.training.starts % len(self.overrides)])
        self._started_s = self._seen_s = time.monotonic()
        self._kills_at_start = len(self.kills)

    def _is_running(self) -> bool:
        """Look once: at steps that came, at a driver that ended; False when training is over."""
        now_s, step = time.monotonic(), self.training.steps()
        if step > self._seen_step:
            if self._seen_s == self._started_s:
                self._start_takes_s = now_s - self._started_s
            self._seen_step, self._seen_s = step, now_s
        code = self.training.ended()
        if code is None:
            if now_s - self._seen_s > self.patience_s:
                raise MachineFault(
                    f"{self.training.name} hangs: no new step for {self.patience_s:g} s after "
                    f"step {step} (see {self.training.log})"
                )
            return True
        if code == 0:
            return False
        self._go_on(code)
        return True

    def _go_on(self, code: int) -> None:
        """Type the command again, where its driver was killed or did not come to train."""
        if self._kills_at_start < len(self.kills):
            self.kills[-1].typed_again = True
            is_explained = True
        else:
            self._false_starts += 1
            has_trained = self._seen_s > self._started_s
            is_explained = not has_trained and self._false_starts <= MOST_FALSE_STARTS
        if code > GIVEN_UP or not is_explained:
            raise self.training.fault(code)
        self.tell(f"  the driver is gone ({code}): the same command again")
        self._start()

    def _wait(self, planned: PlannedKill) -> bool:
        """Until the moment of a kill; False when training is over before."""
        return MOMENTS[planned.moment](self, planned)

    def _pause(self, seconds: float) -> bool:
        until_s = time.monotonic() + seconds
        while self._is_running():
            if time.monotonic() >= until_s:
                return True
            time.sleep(POLL_S)
        return False

    def _until_training(self, planned: PlannedKill) -> bool:
        """Some time into the step after the planned one."""
        return self._until_step(planned) and self._pause(planned.chance * MOST_DELAY_S)

    def _until_step(self, planned: PlannedKill) -> bool:
        wanted = max(planned.step, 1 + (self.kills[-1].step if self.kills else 0))
        while self._is_running():
            if self._seen_step >= wanted:
                return True
            time.sleep(POLL_S)
        return False

    def _until_saving(self, planned: PlannedKill) -> bool:
        if not self._until_step(planned):
            return False
        last_step = self._seen_step + SAVING_STEPS
        for look in count():
            if self.training.is_saving():
                return True
            if look % 10 == 0 and not self._is_running():
                return False
            if self._seen_step > last_step:
                return True
            time.sleep(POLL_S / 10)
        return False

    def _until_starting(self, planned: PlannedKill) -> bool:
        """A share of the time that a start takes, after the last kill; no step comes between."""
        return self._pause(planned.chance * self._start_takes_s)

    def _kill(self, planned: PlannedKill) -> bool:
        """False when training is over before."""
        found = self._candidates(planned)
        if not found:
            return False
        chosen = found[int(planned.chance * len(found))]
        self.training.look()
        saving = self.training.is_saving()
        kill = Kill(
            what=chosen.name,
            moment=self._moment(chosen, saving=saving),
            step=self.training.steps(),
            at_s=time.time(),
        )
        chosen.kill()
        self.kills.append(kill)
        self.tell(
            f"kill {len(self.kills)}: {kill.what} while {kill.moment}, {kill.step} steps done"
        )
        return True

    def _moment(self, chosen: Found, *, saving: bool) -> str:
        """What the training is doing, as far as one can see from here."""
        if self._seen_step >= self.training.settings["total_steps"]:
            return "ending"
        last_step = self.kills[-1].step if self.kills else 0
        # a folder that a killed worker left half written looks like a checkpoint being saved
        if self._seen_step <= last_step or chosen.name.endswith(PREPARING):
            return "starting"
        return "saving" if saving else "training"

    def _candidates(self, planned: PlannedKill) -> list[Found]:
        """Who can be killed; where nobody of the kind is there yet, once there is one."""
        while self._is_running():
            if found := candidates(self.training.driver, planned.victim):
                return found
            time.sleep(POLL_S)
        return []


MOMENTS: dict[str, Callable[[KilledTraining, PlannedKill], bool]] = {
    "training": KilledTraining._until_training,
    "saving": KilledTraining._until_saving,
    "starting": KilledTraining._until_starting,
}

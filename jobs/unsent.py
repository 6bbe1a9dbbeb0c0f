"""The record of a training while MLflow may be away: what it cannot take is kept, and sent later.

    storage_path/NAME/unsent.jsonl      calls of Run that MLflow has not answered, oldest first

All calls go through a thread in their order, so that training never waits for them. Sent twice they
change nothing: figures carry the time at which they were measured.
"""

import base64
import contextlib
import io
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobs.errors import MachineFault
from jobs.events import Event
from jobs.kept_calls import MEASURED, Call, is_step, read_calls, send_calls
from jobs.mlflow_store import quick_to_give_up, without_password
from jobs.tracking import Run
from pipeline.storage import Location

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNSENT = "unsent.jsonl"
STEPS_AT_ONCE = 50
RETRY_S = 5.0
PATIENCE_S = 120.0
"""At the end of a training."""
ENDING_S = 5.0
"""At the end of one that was broken off."""
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
"""What MLflow says of a call that it will never take."""


class Spool:
    """A run's record that never fails and never waits.

    Args:
        run: what is called in the end.
        folder: of the run; what another process left unsent there is sent first.
    """

    def __init__(self, run: Run, *, folder: str) -> None:
        self.run = run
        self.place = Location.of(folder).child(UNSENT)
        self.away = False
        self.hurried: Mapping[str, str] = {}
        """What the environment has beside the user's own, for MLflow to give up quickly."""
        self._events: deque[Event] = deque()
        self._refused: set[str] = set()
        self._calls: deque[Call] = deque(read_calls(self.place))
        self._kept = len(self._calls)
        self._in_record: int | None = None
        self._lock = threading.Lock()
        self._new = threading.Event()
        self._new.set()  # there may be something left
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unsent", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str:
        """MLflow's."""
        return self.run.run_id

    def last_step(self) -> int:
        """The newest step that the record has or is going to get; 0 without one."""
        with self._lock:
            kept = [call["step"] for call in self._calls if is_step(call)]
        with contextlib.suppress(Exception):
            self._in_record = self._newest()
        return max([self._in_record or 0, *kept])

    def _newest(self) -> int:
        return max(map(self.run.last_step, MEASURED))

    def begin(self, *, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """As Run.begin."""
        self._add("begin", params=dict(params), tags=dict(tags))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, time_ms: int) -> None:
        """As Run.log_metrics."""
        self._add("log_metrics", metrics=dict(metrics), step=step, time_ms=time_ms)

    def log_json(self, value: Any, file: str) -> None:
        """As Run.log_json."""
        self._add("log_json", value=value, file=file)

    def log_figure(self, figure: "Figure", file: str) -> None:
        """As Run.log_figure."""
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        self._add("log_base64", content=base64.b64encode(picture.getvalue()).decode(), file=file)

    def log_dataset(
        self, uri: str, *, name: str, digest: str, context: str, counts: Mapping[str, int]
    ) -> None:
        """As Run.log_dataset."""
        self._add(
            "log_dataset", uri=uri, name=name, digest=digest, context=context, counts=dict(counts)
        )

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """As Run.set_tags."""
        self._add("set_tags", tags=dict(tags))

    def end(self, status: str) -> None:
        """As Run.end."""
        self._add("end", status=status)

    def take_events(self) -> list[Event]:
        """What happened to the record since the last call."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def sent(self, *, patience_s: float) -> bool:
        """Whether everything is in the record, after waiting for it no longer than this."""
        until_s = time.monotonic() + patience_s
        while self._calls and time.monotonic() < until_s:
            time.sleep(0.05)
        return not self._calls

    @contextmanager
    def at_leisure(self) -> Iterator[None]:
        """Within the block MLflow takes the time that it would: a model is more than figures."""
        for name in self.hurried:
            os.environ.pop(name, None)
        try:
            yield
        finally:
            os.environ.update(self.hurried)

    def close(self) -> None:
        """Send no more; what is unsent lies in the folder afterwards."""
        self._stop.set()
        self._new.set()
        self._thread.join()
        self._keep()

    def _add(self, call: str, **arguments: Any) -> None:
        with self._lock:
            self._calls.append({"call": call, **arguments})
        self._new.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._new.wait()
            self._new.clear()
            while self._calls and not self._stop.is_set():
                self._try_first()

    def _try_first(self) -> None:
        calls = self._first()
        try:
            if self._in_record is None:
                self._in_record = self._newest()
            send_calls(self.run, [each for each in calls if not self._is_old(each)])
        except Exception as error:
            if not _is_final(error):
                self._wait(error)
                return
            self._tell_refusal(calls[0]["call"], error)
        with self._lock:
            for _ in calls:
                self._calls.popleft()
        if self.away and not self._calls:
            self.away = False
            self._say("record back", "MLflow is back and has got everything")
        if self._kept and not self._calls:
            self._keep()

    def _first(self) -> list[Call]:
        """The oldest call, or all steps at the front that go into one request."""
        with self._lock:
            first: list[Call] = []
            for call in self._calls:
                if first and (call["call"] != "log_metrics" or len(first) == STEPS_AT_ONCE):
                    break
                first.append(call)
                if call["call"] != "log_metrics":
                    break
            return first

    def _is_old(self, call: Call) -> bool:
        """Whether a step was in the record before this process began: done again, it is the same.

        While MLflow was away nobody knew.
        """
        return is_step(call) and call["step"] <= (self._in_record or 0)

    def _wait(self, error: Exception) -> None:
        if not self.away:
            self.away = True
            self._say("record away", f"MLflow is away, its record is kept ({self._line(error)})")
        self._keep()
        self._stop.wait(RETRY_S)

    def _tell_refusal(self, call: str, error: Exception) -> None:
        """The first one of each kind of call: to record an event takes calls, too."""
        if call not in self._refused:
            self._refused.add(call)
            self._say("record refuses", f"MLflow refuses {call}: {self._line(error)}")

    def _line(self, error: Exception) -> str:
        """For everybody's eyes: MLflow names the store with the password that its address has."""
        said = str(error).replace(self.run.uri, without_password(self.run.uri))
        return said.splitlines()[0][:200] if said else type(error).__name__

    def _keep(self) -> None:
        """The folder has what is unsent; one that does not answer gets it the next time."""
        with self._lock:
            lines = [json.dumps(call, default=str) + "\n" for call in self._calls]
        with contextlib.suppress(OSError):
            if lines:
                self.place.write_bytes("".join(lines).encode())
            elif self._kept:
                self.place.delete()
            self._kept = len(lines)

    def _say(self, kind: str, text: str) -> None:
        with self._lock:
            steps = [call["step"] for call in self._calls if is_step(call)]
        self._events.append(Event(kind=kind, step=steps[0] if steps else 0, text=text))


@contextmanager
def recorded(
    run: Run, *, folder: str, params: Mapping[str, Any], tags: Mapping[str, Any]
) -> Iterator[Spool]:
    """A training's record; how the block ends becomes its status, now or when MLflow is back.

    Raises:
        MachineFault: the block ended well, and MLflow has not got everything.
    """
    with quick_to_give_up() as hurried:
        spool = Spool(run, folder=folder)
        spool.hurried = hurried
        spool.begin(params=params, tags=tags)
        status = "FAILED"
        try:
            yield spool
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            spool.end(status)
            whole = spool.sent(patience_s=PATIENCE_S if status == "FINISHED" else ENDING_S)
            spool.close()
    if not whole:
        raise unanswered(spool)


def unanswered(spool: Spool) -> MachineFault:
    """What to say of a training that is at its end while MLflow is away."""
    return MachineFault(
        f"MLflow at {without_password(spool.run.uri)} does not answer: everything is trained, and "
        f"what it has not got lies in {spool.place}; the same command sends it"
    )


def _is_final(error: Exception) -> bool:
    """Whether the same call would only fail again: refused, or not to be made of a file's line."""
    code = getattr(error, "error_code", None)
    return code in REFUSALS or isinstance(error, TypeError | KeyError)

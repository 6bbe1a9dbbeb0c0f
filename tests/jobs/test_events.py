"""What happened to a run stays in its folder, also when a kill cuts off the last line."""

from pathlib import Path

from jobs.events import Event, Journal, num_restarts, read_events, told_restarts


def event(kind: str, step: int) -> Event:
    return Event(kind=kind, step=step, text=f"{kind} at {step}", facts={"rank": 1})


def test_a_restart_reads_the_events_back_and_goes_on(tmp_path):
    first = Journal(str(tmp_path / "run"))
    happened = [event("worker lost", 5), event("best", 6)]
    for each in happened:
        first.add(each)
    second = Journal(str(tmp_path / "run"))
    assert second.events == happened
    second.add(event("continued", 7))
    assert read_events(str(tmp_path / "run")) == [*happened, second.events[-1]]


def test_a_line_that_was_cut_off_is_left_out_and_not_written_on(tmp_path):
    journal = Journal(str(tmp_path))
    journal.add(event("worker lost", 5))
    with journal.place.filesystem.open(journal.place.path, "a") as file:
        file.write('{"kind": "best", "st')
    again = Journal(str(tmp_path))
    again.add(event("continued", 5))
    again.add(event("worker hangs", 9))
    kinds = [each.kind for each in read_events(str(tmp_path))]
    assert kinds == ["worker lost", "continued", "worker hangs"]


def test_an_event_that_a_full_disk_has_cut_off_is_written_again(tmp_path, monkeypatch):
    happened = [event("worker lost", 5), event("continued", 5), event("best", 6)]
    journal = Journal(str(tmp_path))
    journal.add(happened[0])

    def fills(place: Path, mode: str) -> None:
        with open(place, mode) as file:
            file.write('{"kind": "contin')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fills)
        journal.add(happened[1])
    journal.add(happened[2])
    assert read_events(str(tmp_path)) == happened


def test_a_folder_that_does_not_answer_loses_nothing(tmp_path):
    journal = Journal(str(tmp_path / "run"))
    (tmp_path / "run").write_text("in the way")
    journal.add(event("worker lost", 5))
    (tmp_path / "run").unlink()
    journal.add(event("continued", 5))
    assert [each.step for each in read_events(str(tmp_path / "run"))] == [5, 5]


def test_restarts_are_counted_and_other_events_are_not():
    events = [event("worker lost", 1), event("best", 2), event("continued", 3)]
    assert num_restarts(events) == 2
    assert told_restarts(events).startswith("went on 2 times after a break (worker lost 1, continu")
    assert told_restarts([event("best", 2)]) == ""

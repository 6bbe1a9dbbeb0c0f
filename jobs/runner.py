"""Every job's way in and out: settings in, one line and an exit code out.

0    done                           2    the user can mend it
1    the machine or the program     130  interrupted (143: by SIGTERM)
"""

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from jobs.errors import MachineFault

USER_MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
)

TOLD_WHOLE = (ConnectionError, TimeoutError)
"""What is raised here under these very names says all; what the system raises has others."""

LEADING_SETTING = {"generate": "model", "inspect": "dataset", "verify": "dataset"}
"""The setting whose value may stand first, without its name."""


@contextmanager
def exit_codes(name: str, *, debug: bool = False) -> Iterator[None]:
    """Turn what a job raises into at most two lines on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt as error:
        # jobs.stopping.Stopped says what was saved
        print(
            f"farreach {name}: {error}" if error.args else f"farreach {name}: interrupted",
            file=sys.stderr,
        )
        raise SystemExit(getattr(error, "exit_code", 130)) from None
    except SystemExit as error:
        # Ray's handler of SIGTERM, where a job has none of its own
        if error.code != signal.SIGTERM:
            raise
        print(f"farreach {name}: ended by SIGTERM", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"farreach {name}: {describe(error, debug=debug)}", file=sys.stderr)
        raise SystemExit(2 if is_user_mistake(error) else 1) from None


def is_user_mistake(error: BaseException) -> bool:
    """Whether the user can mend what went wrong, also when it was raised on a Ray worker."""
    return isinstance(root_cause(error), USER_MISTAKES)


def describe(error: BaseException, *, debug: bool = False) -> str:
    """What went wrong in one or two lines."""
    cause = root_cause(error)
    if isinstance(cause, OSError) and cause.strerror and cause.filename is not None:
        return f"{cause.filename}: {cause.strerror}"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()][:2]
    message = "\n".join(lines) or type(cause).__name__
    if isinstance(cause, (*USER_MISTAKES, MachineFault)) or type(cause) in TOLD_WHOLE:
        return message
    hint = "" if debug else " (--debug shows the traceback)"
    return f"{type(cause).__name__}: {message.splitlines()[0]}{hint}"


def root_cause(error: BaseException) -> BaseException:
    """The exception that a worker raised, out of the wrappers Ray puts around it."""
    inner = getattr(error, "cause", None)  # ray.exceptions.RayTaskError
    inner = inner or getattr(error, "controller_failure", None)  # ray.train's ControllerError
    failures = getattr(error, "worker_failures", None)  # ray.train's WorkerGroupError
    if isinstance(failures, dict) and failures:
        # one worker's mistake breaks the connections of the others
        inner = min((_of_worker(*each) for each in sorted(failures.items())), key=_distance)
    if type(error).__name__ in ("UserCodeException", "UserExceptionWithTraceback"):
        inner = error.__cause__ or getattr(error, "_base_exc", None)
    return root_cause(inner) if isinstance(inner, BaseException) else error


def _of_worker(rank: int, error: BaseException) -> BaseException:
    failure = getattr(error, "health_check_failure", None)
    if type(failure).__name__ not in ("ActorDiedError", "ActorUnavailableError"):
        return root_cause(error)
    return MachineFault(
        f"worker {rank} died in the middle: it was killed or crashed, perhaps for want of memory; "
        "the same command goes on from the last checkpoint"
    )


def _distance(error: BaseException) -> int:
    """From the cause: what a worker that is gone does to the others comes last."""
    if isinstance(error, USER_MISTAKES):
        return 0
    if isinstance(error, MachineFault):
        return 1
    return 3 if isinstance(error, ConnectionError) else 2


def module_name(command: str) -> str:
    """Where a command's job stands: that of verify-resume is jobs.verify_resume."""
    return f"jobs.{command.replace('-', '_')}"


def run_config(
    name: str,
    config_class: Any,
    main: Callable[[Any], Any],
    *,
    path: Path | None,
    overrides: list[str],
) -> None:
    """Read the settings of one job and run it; call within `exit_codes`."""
    from jobs.settings import load

    if config_class.__module__ == "__main__":
        # Ray pickles what __main__ defines by value; a worker's copy would be another class.
        module = import_module(module_name(name))
        config_class, main = getattr(module, config_class.__name__), module.main
    main(load(config_class, path, overrides))


def run_entry(config_class: Any, main: Callable[[Any], Any], name: str) -> None:
    """`python -m jobs.NAME CONFIG.yaml [key=value ...] [--debug]`, same as `farreach NAME ...`."""
    arguments = [each for each in sys.argv[1:] if each != "--debug"]
    if "--help" in arguments or "-h" in arguments:
        print(sys.modules[main.__module__].__doc__)
        return
    debug = "--debug" in sys.argv[1:]
    with exit_codes(name, debug=debug):
        path, overrides = split_arguments(name, arguments)
        run_config(name, config_class, main, path=path, overrides=overrides)


def split_arguments(name: str, arguments: list[str]) -> tuple[Path | None, list[str]]:
    """A leading file name, if there is one, and the overrides behind it.

    Before both, some jobs take the value of one setting alone.
    """
    first: list[str] = []
    if name in LEADING_SETTING and arguments and not _is_file_or_setting(arguments[0]):
        # quoted, for YAML would read a number out of some names
        first = [f"{LEADING_SETTING[name]}={json.dumps(arguments[0])}"]
        arguments = arguments[1:]
    if arguments and not _is_setting(arguments[0]):
        return Path(arguments[0]), first + arguments[1:]
    return None, first + arguments


def _is_file_or_setting(argument: str) -> bool:
    return _is_setting(argument) or argument.endswith((".yaml", ".yml"))


def _is_setting(argument: str) -> bool:
    """Folders of runs may be named after a setting, as runs/lr=0.1: no key holds a slash."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and "/" not in key and not Path(argument).is_dir()

"""The two ways a job ends badly: the user can mend it, or the machine must."""


class UserError(ValueError):
    """A mistake of the user's: one line that names the value and the remedy; exit code 2."""


class MachineFault(RuntimeError):  # noqa: N818 - a fault, not the user's error
    """A service or a machine that failed: one line that says which; exit code 1."""

"""The two errors a user may meet. Everything else that escapes is a defect of ours."""


class InputError(ValueError):
    """The input is wrong: one line saying what is wrong and what to do. Command lines exit with 2."""


class RunError(RuntimeError):
    """The run failed although its input was fine (NaN loss, full disk, …). Command lines exit with `exit_code`."""

    exit_code = 1

"""How long something takes, as people say it."""


def duration(seconds: float) -> str:
    """ "3 h 20 min", "4 min 5 s", "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

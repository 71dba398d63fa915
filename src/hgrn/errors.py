"""The one error that a person at the command line is meant to read."""


class UserError(ValueError):
    """Something the user gave or has on disk is wrong; the message names it, the rule and the
    remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


class ToldElsewhere(UserError):
    """A UserError of another process of the same run, which tells the user of it; the command line
    is silent about this one."""

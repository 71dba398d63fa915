"""The one error that a person at the command line is meant to read."""


class UserError(ValueError):
    """Something the user gave or has on disk is wrong; the message names it, the rule and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """

"""The one exception that is meant for the user's eyes."""


class UserError(ValueError):
    """Bad input. The message names what was given, what is allowed and what to do next.

    The command line prints it without a traceback and exits with status 2.
    """

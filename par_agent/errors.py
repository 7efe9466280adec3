"""The exceptions that are meant for the user's eyes."""


class UserError(ValueError):
    """Bad input. The message names what was given, what is allowed and what to do next.

    The command line prints it without a traceback and exits with status 2.
    """


class UnavailableError(UserError):
    """What a policy acts with is gone, say its model server: that is nobody's failure, and ends the run, not a rollout.

    No record is written of the rollout; the same command goes on with it when what was gone is back.
    """

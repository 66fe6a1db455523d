"""The one exception that speaks to the person at the keyboard."""


class UserError(ValueError):
    """One sentence: what is wrong, where, and what to do. Commands print it alone and exit with code 2."""

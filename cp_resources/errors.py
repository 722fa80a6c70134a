"""The one base of errors that a person can mend: shown as a sentence, never as a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the code is wrong: the input, a setting, a file, a server.

    The text is one paragraph for a person: what is wrong, where, the value seen, what is allowed, what to do.
    The command line prints it after "error: " and exits with 2.
    """

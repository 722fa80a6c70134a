"""Who sits at the keyboard: the name that stands beside what a person decides."""

from __future__ import annotations


def login_name() -> str:
    """The login name.

    Raises:
        UserError: this user has none, as in a container.
    """
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        from cp_resources.errors import UserError

        raise UserError("nobody is logged in by name here: say who it is with --by NAME") from None

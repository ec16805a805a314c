"""The one kind of error that users see."""

from __future__ import annotations

ERROR_KINDS = ("bad_input", "missing_weights", "out_of_memory", "cancelled", "internal")


class UserError(Exception):
    """Something a user can mend. `message` is one plain sentence, `hint` says what to do next."""

    def __init__(self, message: str, hint: str = "", kind: str = "bad_input") -> None:
        if kind not in ERROR_KINDS:
            raise ValueError(f"unknown error kind {kind!r}")
        super().__init__(message)
        self.message, self.hint, self.kind = message, hint, kind

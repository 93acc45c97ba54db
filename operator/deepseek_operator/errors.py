"""What can go wrong, sorted by who can put it right.

`SpecError` is the user's: retrying the same object changes nothing, so it becomes a condition. Everything else is the
world's: the key is tried again with back-off.
"""


class SpecError(ValueError):
    """The object asks for something that cannot be done; `reason` is the condition's CamelCase word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class ConnectError(Exception):
    """No cluster to work for: neither a pod's service account nor a usable kubeconfig."""


class ApiError(Exception):
    """The API server refused a call."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class RejectedError(ApiError):
    """The API server will never take this content (400 or 422): what the user wrote made it invalid."""

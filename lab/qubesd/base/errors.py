# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The errors that a client of the Admin API sees, with the class names and texts of the real ones.

A QubesException is sent with its class name and text. Whatever else a method raises reaches no client: the connection
is aborted. Class names are the wire names (qubes.exc), hence the spelling.
"""


class QubesException(Exception):  # noqa: N818
    """An error that is shown to the user."""


class ProtocolError(AssertionError):
    """The client asked for something that no correct client asks for."""


class PermissionDenied(PermissionError):  # noqa: N818
    """A correct call that this client may not make."""


class QubesInvalidTagError(ProtocolError):
    """Not a tag."""


class QubesValueError(QubesException, ValueError):
    """A value that is not accepted."""


class QubesPropertyValueError(QubesValueError):
    """A value that a property does not accept."""


class QubesVMInvalidUUIDError(QubesException):
    """Not a UUID of a qube."""

    def __init__(self, uuid: str) -> None:
        super().__init__(f"VM UUID is not valid: {uuid!r}")


class QubesVMNotFoundError(QubesException):
    """There is no such qube."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No such domain: {name!r}")


class QubesVMAlreadyExistsError(QubesException):
    """There is already a qube of that name."""


class QubesNoSuchPropertyError(QubesException, AttributeError):
    """The holder has no property of that name."""

    def __init__(self, holder: object, name: str) -> None:
        super().__init__(f"Invalid property {name!r} of {holder}")


class QubesFeatureNotFoundError(QubesException):
    """The feature is not set."""

    def __init__(self, holder: object, feature: str) -> None:
        super().__init__(f"Feature not set for domain {holder}: {feature}")


class QubesTagNotFoundError(QubesException):
    """The qube does not have the tag."""

    def __init__(self, holder: object, tag: str) -> None:
        super().__init__(f"Tag not set for domain {holder}: {tag}")


class QubesLabelNotFoundError(QubesException):
    """There is no such label."""

    def __init__(self, label: str) -> None:
        super().__init__(f"Label does not exist: {label}")


class QubesVMError(QubesException):
    """The state of a qube does not allow it. The first argument of all of these is the qube."""

    text = "{name}"

    def __init__(self, vm: object, text: str | None = None) -> None:
        super().__init__(text or self.text.format(name=repr(str(vm))))


class QubesVMInUseError(QubesVMError):
    """Another qube depends on it."""

    text = "Domain is in use: {name}"


class QubesVMNotStartedError(QubesVMError):
    """It is halted."""

    text = "Domain is powered off: {name}"


class QubesVMNotRunningError(QubesVMNotStartedError):
    """It is halted or paused."""

    text = "Domain not running (either powered off or paused): {name}"


class QubesVMNotPausedError(QubesVMNotStartedError):
    """It is not paused."""

    text = "Domain is not paused: {name}"


class QubesVMNotHaltedError(QubesVMError):
    """It is not halted."""

    text = "Domain is not powered off: {name}"


class QubesVMShutdownTimeoutError(QubesVMError):
    """It did not stop in time."""

    text = "Domain shutdown timed out: {name}"

"""What can go wrong, by whose fault; each kind has its exit code."""

__all__ = ["InputError", "IvdtoolError", "ModelError", "NoDiscError", "RefusedError", "UsageError"]


class IvdtoolError(Exception):
    """Base of all errors a user can meet: one line that says what is wrong and what to do."""

    exit_code = 1


class NoDiscError(IvdtoolError):
    """The image was read, but no disc was found in it."""

    exit_code = 1


class RefusedError(IvdtoolError):
    """Discs were found in the image, but their labels are too doubtful to be written."""

    exit_code = 1


class UsageError(IvdtoolError):
    """An option or an output place that cannot be used."""

    exit_code = 2


class InputError(IvdtoolError):
    """An image, label file or data set that is unreadable or invalid."""

    exit_code = 3


class ModelError(IvdtoolError):
    """A model file that is missing, damaged or incompatible."""

    exit_code = 4

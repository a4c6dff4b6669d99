"""What is raised when data are missing or not as they need to be."""


class DataError(ValueError):
    """The data are missing, or not what training and evaluation need; the message says how to fix it."""


class UnreadableImageError(DataError):
    """One image cannot be decoded."""

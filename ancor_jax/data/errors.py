"""What is raised when data are missing or not as they need to be."""

from ancor_jax.data.names import shown


class DataError(ValueError):
    """The data are missing, or not what training and evaluation need; the message says how to fix it.

    The message is one line of printable text, whatever the names in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


class UnreadableImageError(DataError):
    """One image cannot be decoded."""

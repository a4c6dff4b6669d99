"""Names that others gave to files and classes, made safe to print and to write.

A file name is a sequence of bytes. Python keeps those that are not UTF-8 as lone surrogates, which cannot be encoded
again, and a name may hold line ends or terminal commands. `shown` escapes all of these; the name itself opens the file.
"""

import unicodedata

_BIDI_CONTROLS = frozenset('\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')  # they reorder the text after them
_ESCAPED_CATEGORIES = ('Cc', 'Cs', 'Zl', 'Zp')  # control characters, lone surrogates, separators of lines
_FORMULA = ('=', '+', '-', '@', '\t', '\r')  # how a cell begins that a spreadsheet computes


def shown(name: str) -> str:
    """The name as valid, printable text on one line: bytes that are not UTF-8 become '\\xe9', a line end '\\n'."""
    return name if name.isprintable() else ''.join(_escaped(character) for character in name)


def _escaped(character: str) -> str:
    if '\udc80' <= character <= '\udcff':  # a byte that is not UTF-8
        return f'\\x{ord(character) - 0xDC00:02x}'
    if unicodedata.category(character) in _ESCAPED_CATEGORIES or character in _BIDI_CONTROLS:
        return character.encode('unicode_escape', 'surrogatepass').decode('ascii')
    return character


def class_name(folder: str) -> str:
    """The name of a class from that of its folder: in composed form, since macOS writes the same letters otherwise."""
    return shown(unicodedata.normalize('NFC', folder))


def cell(text: str) -> str:
    """A cell of a CSV file that no spreadsheet computes: one that begins as a formula gets an apostrophe before it."""
    text = shown(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def alike(name: str) -> str:
    """The same for names that differ only in case or Unicode form, which some file systems cannot keep apart."""
    return unicodedata.normalize('NFKC', name).casefold()

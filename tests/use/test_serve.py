"""The page on one's own machine: requests, what is refused, and the page in a browser."""

import http.client
import io
import json
import re
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from ancor_jax.commands import serve
from ancor_jax.config import ConfigError
from ancor_jax.runtime import interruption
from tests.helpers import small


@pytest.fixture(scope='module')
def server(net):
    with serve.make_server(net, 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server, method='GET', path='/', body=None, **headers):
    """Status, headers and content of a response."""
    connection = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=60)
    connection.request(method, path, body, {name.replace('_', '-'): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


def request(classes, query):
    """The body that the page sends."""
    head = {
        'classes': [{'name': name, 'sizes': [len(image) for image in images]} for name, images in classes.items()],
        'query': [len(image) for image in query],
    }
    images = [image for images in classes.values() for image in images] + list(query)
    return json.dumps(head).encode() + b'\n' + b''.join(images)


def files(photographs, part):
    return {
        path.name: [p.read_bytes() for p in sorted(path.glob('*.png'))]
        for path in sorted(photographs.glob(f'{part}/*'))
    }


def test_a_request_is_answered_as_from_python_and_lists_what_is_unreadable(server, net, photographs):
    support, query = files(photographs, 'support'), [*files(photographs, 'query')['b'], b'nothing']
    damaged = {'a': [b'nothing', *support['a']], 'b': support['b'], 'c': support['c']}
    status, _, content = ask(server, 'POST', '/classify', request(damaged, query), Content_Type=serve.CONTENT_TYPE)
    assert status == 200
    found = json.loads(content)
    wanted = net.classify(support, query[:2])
    assert [answer['answer'] for answer in found['answers']] == wanted.names
    np.testing.assert_allclose(
        [answer['likely'][0]['probability'] for answer in found['answers']], wanted.probabilities.max(axis=1), atol=1e-5
    )
    places = [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]  # the first image of class a is unreadable
    for answer, nearest in zip(found['answers'], wanted.nearest, strict=True):
        assert [(one['class'], one['image']) for one in answer['nearest']] == [places[index] for index in nearest]
        assert answer['coarse']['name'] in ('round', 'straight', 'curved')
    assert found['unreadable'] == [
        {'class': 0, 'image': 0, 'reason': 'not an image'},
        {'class': None, 'image': 2, 'reason': 'not an image'},
    ]


@pytest.mark.parametrize(
    ('classes', 'query', 'message'),
    [
        ({'a': [b'x'], 'b': [b'y']}, [b'z'], "No image can be read of class 'a'."),
        ({'a': [], 'b': [b'y']}, [b'z'], "There is no image of class 'a'."),
        ({'a': ['good'], 'b': ['good']}, [b'z'], 'None of the images to classify can be read.'),
        ({'a': ['good']}, ['good'], 'there must be two classes or more'),
        ({'unknown': ['good'], 'b': ['good']}, ['good'], "'unknown' is the answer for images of no class"),
        ({'a': ['good'], ' a ': ['good']}, ['good'], "Two classes have the name 'a'"),
        ({'a': ['good'], ' ': ['good']}, ['good'], 'A class has no name'),
        ({f'{n}': [b'x'] for n in range(101)}, [b'x'], '1,000 images and 100 classes; send fewer at once'),
    ],
)
def test_what_cannot_be_answered_gets_a_sentence(server, photographs, classes, query, message):
    good = files(photographs, 'support')['a'][0]
    filled = {name: [good if image == 'good' else image for image in images] for name, images in classes.items()}
    body = request(filled, [good if image == 'good' else image for image in query])
    status, _, content = ask(server, 'POST', '/classify', body, Content_Type=serve.CONTENT_TYPE)
    assert status == 422
    assert message in json.loads(content)['error']


@pytest.mark.parametrize(
    'body',
    [
        b'',
        b'{}\n',
        b'[1]\n',
        b'{"classes": [{"name": 1, "sizes": []}], "query": []}\n',
        b'[' * 100_000 + b'\n',
        b'{"classes": [], "query": [-1, 1]}\n',
        b'{"classes": [], "query": [true]}\nx',
        b'{"classes": [], "query": [5]}\nx',
    ],
)
def test_requests_of_another_form_are_refused(body):
    with pytest.raises(serve.BadRequestError, match='form that the page sends|as long as the request says'):
        serve.parse(body)


@pytest.mark.filterwarnings('ignore:Image size')
def test_an_image_of_very_many_pixels_is_not_decoded():
    encoded = io.BytesIO()
    Image.new('1', (12_000, 12_000)).save(encoded, 'PNG')
    assert serve._unreadable(encoded.getvalue()) == '12000×12000 pixels are too many; make it smaller'


def test_other_sites_and_other_names_of_the_machine_are_refused(server):
    here = f'127.0.0.1:{server.server_port}'
    kind = {'Content_Type': serve.CONTENT_TYPE}
    assert server.server_address[0] == '127.0.0.1'
    assert ask(server)[0] == 200
    assert ask(server, Host='attacker.example')[0] == 403
    assert ask(server, 'POST', '/classify', b'', Host='attacker.example', **kind)[0] == 403
    assert ask(server, 'POST', '/classify', b'', Origin='http://attacker.example', **kind)[0] == 403
    assert ask(server, 'POST', '/classify', b'', Origin=f'http://{here}', **kind)[0] == 422
    assert ask(server, 'POST', '/classify', b'', Content_Type='text/plain')[0] == 404
    assert ask(server, path='/../cli.py')[0] == 404


def test_uploads_are_bounded(server):
    status, _, content = ask(
        server, 'POST', '/classify', Content_Type=serve.CONTENT_TYPE, Content_Length=str(serve.MOST_BYTES + 1)
    )
    assert status == 413
    assert 'more than 256 MiB; send fewer at once' in json.loads(content)['error']
    assert ask(server, 'POST', '/classify', Content_Type=serve.CONTENT_TYPE, Content_Length='-1')[0] == 411


def test_the_page_allows_its_own_script_alone_and_escapes_the_title(server):
    _, headers, content = ask(server)
    policy, html = headers['Content-Security-Policy'], content.decode()
    (nonce,) = set(re.findall(r'nonce="([^"]+)"', html))
    assert f"script-src 'nonce-{nonce}';" in policy
    assert policy.startswith("default-src 'none';")
    assert 'unsafe' not in policy
    assert nonce not in ask(server)[2].decode()
    assert headers['X-Content-Type-Options'] == 'nosniff'
    limits = serve.local_page.Limits(1, 1, 1, 1, '</script><b>')
    html = serve.local_page.page('<b>title</b>', 'n', limits)
    assert '&lt;b&gt;title' in html
    assert html.count('</script>') == 1


def test_the_command_prints_its_address_and_ends_at_a_signal(run, monkeypatch, capsys):
    signal = threading.Event()
    monkeypatch.setattr(interruption, 'requested', signal.is_set)
    thread = threading.Thread(target=serve.serve, args=(small(), run, 0))
    thread.start()
    printed, deadline = '', time.monotonic() + 60
    while 'http' not in printed and time.monotonic() < deadline:
        time.sleep(0.05)
        printed += capsys.readouterr().out
    port = int(re.search(r'ANCOR, step 7: open http://127\.0\.0\.1:(\d+)/ in a browser', printed)[1])
    with pytest.raises(
        ConfigError, match=f'port {port} cannot be used .*; choose another, for example --port={port + 1}'
    ):
        serve.make_server(None, port)
    signal.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert capsys.readouterr().out == 'Stopped.\n'


def test_the_page_in_a_browser(server, photographs, tmp_path):
    browser_path = shutil.which('chromium')
    if browser_path is None:
        pytest.skip('no chromium on this machine: apt-get install chromium')
    from playwright.sync_api import sync_playwright

    (tmp_path / '<b>broken.png').write_bytes(b'nothing')
    names = ['<img src=x onerror=alert(1)>', 'blue tits of a very long-winded kind ' * 3]
    folders = sorted(photographs.glob('support/*'))
    complaints = []

    def dismiss(dialog):
        complaints.append(dialog.message)
        dialog.dismiss()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=['--no-sandbox'])
        for width, height in ((390, 844), (1280, 900)):
            page = browser.new_page(viewport={'width': width, 'height': height})
            page.on('console', lambda message: complaints.append(message.text))
            page.on('pageerror', lambda error: complaints.append(str(error)))
            page.on('dialog', dismiss)
            page.goto(server.address, wait_until='load')
            page.screenshot(path=tmp_path / f'start-{width}.png', full_page=True)
            page.click('#classify')
            assert page.inner_text('#status') == 'Give examples of two classes or more.'
            boxes = page.locator('.class')
            for number, name in enumerate(names):
                box = boxes.nth(number)
                box.get_by_label('Name of the class').fill(name)
                box.locator('input[type=file]').set_input_files(sorted(folders[number].glob('*.png')))
            page.click('#add')
            assert boxes.count() == 3
            page.click('#classify')
            assert page.inner_text('#status') == 'Add images to classify.'
            images = sorted(photographs.glob('query/[ab]/*.png'))
            page.set_input_files('#query', [*images, tmp_path / '<b>broken.png'])
            # Another one by dropping it.
            page.evaluate(
                """async bytes => {
                    const data = new DataTransfer();
                    data.items.add(new File([new Uint8Array(bytes)], 'dropped.png', { type: 'image/png' }));
                    const drop = document.getElementById('query-drop');
                    drop.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
                }""",
                list(images[0].read_bytes()),
            )
            page.click('#classify')
            page.wait_for_selector('#result:not([hidden])', timeout=60_000)
            answers = page.locator('#list figure')
            assert answers.count() == 5
            got = [text.split('\n')[0] for text in page.locator('#list .name').all_inner_texts()]
            assert got == [
                ' '.join(names[0 if path.parent.name == 'a' else 1].split()) for path in [*images, images[0]]
            ]
            assert '<b>broken.png cannot be read: not an image.' in page.inner_text('#status')
            assert page.locator('#list .nearest img').count() == 5 * 3
            page.wait_for_function("[...document.querySelectorAll('#list img')].every(i => i.naturalWidth > 0)")
            assert page.evaluate('[...document.images].every(i => i.alt.trim())')
            assert page.evaluate('document.documentElement.scrollWidth') <= width
            cut = (
                "[...document.querySelectorAll('.name, .small, h2, p')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            )
            assert page.evaluate(f'{cut}.map(e => e.textContent)') == []
            page.screenshot(path=tmp_path / f'answers-{width}.png', full_page=True)
            page.get_by_label('Remove dropped.png').click()
            assert page.is_hidden('#result')  # the answers were of other images
            page.close()
        browser.close()
    assert complaints == []

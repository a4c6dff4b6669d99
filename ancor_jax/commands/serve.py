"""`--mode=serve`: a page on one's own machine that classifies images by a few examples of each class.

The server is the standard library's, on the loopback interface alone: one person uses it, and a page and one request
need no framework. A request has a line of JSON, which says how many bytes each image has, and then the images.
"""

import http
import http.server
import json
import pathlib
import secrets
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from ancor_jax.config import Config, ConfigError
from ancor_jax.data import DataError
from ancor_jax.data.images import UnreadableImageError, check_decodes, size_of
from ancor_jax.evaluation import feature_extraction, trained_model
from ancor_jax.evaluation.classification import Answer
from ancor_jax.evaluation.network import TrainedNetwork
from ancor_jax.report import local_page
from ancor_jax.runtime import interruption

_ADDRESS = '127.0.0.1'
CONTENT_TYPE = 'application/x-ancor-images'  # of no HTML form: another site's page cannot send it
MOST_BYTES = 256 * 2**20  # of a request
MOST_IMAGES = 1000
MOST_CLASSES = 100
_MOST_PIXELS = 100_000_000  # of an image
_MOST_LINE = 2**20  # bytes of the line of JSON
_LONGEST_NAME = 200
_SECONDS = 30.0  # that a connection may be silent
_BATCH = 16  # images a pass: each further number of images takes a program of its own


class BadRequestError(ValueError):
    """A request that has no answer; the message is shown on the page."""


class Request(NamedTuple):
    """The images of a request, encoded."""

    classes: tuple[str, ...]
    support: tuple[tuple[bytes, ...], ...]  # of each class
    query: tuple[bytes, ...]


def serve(config: Config, directory: pathlib.Path, port: int) -> None:
    """Serves the page until a signal ends the program.

    Args:
        config: `eval` says how: the first of its classifiers, support copies and their augmentation, features.
        directory: work directory of the run whose network extracts the features.
        port: 0 for any that is free.

    Raises:
        ConfigError, checkpoint.CheckpointError: no run, no such checkpoint, or the port cannot be used.
    """
    settings = feature_extraction.sized(config)
    settings.batch_size = min(settings.batch_size, _BATCH)
    network = TrainedNetwork(trained_model.load(directory, config.eval.checkpoint), settings)
    with make_server(network, port) as server:
        server.timeout = 0.5
        print(f'{network.trained.title}: open {server.address} in a browser; Ctrl-C ends the server.', flush=True)
        with interruption.deferred():
            while not interruption.requested():
                server.handle_request()
    print('Stopped.', flush=True)


class Server(http.server.ThreadingHTTPServer):
    """The server of one network, on the loopback interface."""

    daemon_threads = True

    def __init__(self, network: TrainedNetwork, port: int) -> None:
        super().__init__((_ADDRESS, port), _Handler)
        self.network = network
        self.turn = threading.Lock()  # one request is in memory at a time
        self.hosts = {f'{name}:{self.server_port}' for name in (_ADDRESS, 'localhost')}

    @property
    def address(self) -> str:
        return f'http://{_ADDRESS}:{self.server_port}/'


def make_server(network: TrainedNetwork, port: int) -> Server:
    """The server, bound to the port and not yet running.

    Raises:
        ConfigError: the port cannot be used.
    """
    try:
        return Server(network, port)
    except OSError as error:
        raise ConfigError(
            f'port {port} cannot be used ({error.strerror}); choose another, for example --port={min(port + 1, 65535)}.'
        ) from error


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    timeout = _SECONDS
    server_version, sys_version = 'ancor_jax', ''

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path != '/':
            self._send(http.HTTPStatus.NOT_FOUND, 'text/plain', b'There is one page: /')
            return
        nonce = secrets.token_urlsafe(16)
        limits = local_page.Limits(MOST_BYTES, MOST_IMAGES, MOST_CLASSES, _LONGEST_NAME, CONTENT_TYPE)
        html = local_page.page(self.server.network.trained.title, nonce, limits)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(http.HTTPStatus.OK, 'text/html', html.encode(), policy)

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        if self.path != '/classify' or self.headers.get('Content-Type') != CONTENT_TYPE:
            self._refuse(http.HTTPStatus.NOT_FOUND, f'Only /classify takes requests, of the type {CONTENT_TYPE}.')
            return
        length = self.headers.get('Content-Length', '')
        if not (length.isascii() and length.isdigit()):
            self._refuse(http.HTTPStatus.LENGTH_REQUIRED, 'The request does not say how long it is.')
            return
        if int(length) > MOST_BYTES:
            too_long = f'The images have more than {MOST_BYTES // 2**20} MiB; send fewer at once.'
            self._refuse(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_long)
            return
        with self.server.turn:
            try:
                content = self.rfile.read(int(length))
            except TimeoutError:
                self.close_connection = True
                return
            try:
                answer = answer_of(self.server.network, parse(content))
            except (BadRequestError, DataError, ConfigError, FloatingPointError) as error:
                self._refuse(http.HTTPStatus.UNPROCESSABLE_ENTITY, f'{str(error).rstrip(".")}.')
                return
        self._send(http.HTTPStatus.OK, 'application/json', json.dumps(answer, allow_nan=False).encode())

    def _is_ours(self) -> bool:
        """Refuses requests by another name, as of a site whose name was bound to this address, or of another site."""
        host, origin = self.headers.get('Host', ''), self.headers.get('Origin')
        if host in self.server.hosts and origin in (None, f'http://{host}'):
            return True
        self._refuse(http.HTTPStatus.FORBIDDEN, f'This server is for its own page: {self.server.address}')
        return False

    def _refuse(self, status: http.HTTPStatus, error: str) -> None:
        self.close_connection = True  # what is left of the request is not read
        self._send(status, 'application/json', json.dumps({'error': error}).encode())

    def _send(self, status: http.HTTPStatus, kind: str, content: bytes, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        headers = {
            'Content-Type': f'{kind}; charset=utf-8',
            'Content-Length': str(len(content)),
            'Content-Security-Policy': policy,
            'X-Content-Type-Options': 'nosniff',
            'Referrer-Policy': 'no-referrer',
            'Cross-Origin-Resource-Policy': 'same-origin',
            'Cache-Control': 'no-store',
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal keeps the address alone."""


def parse(content: bytes) -> Request:
    """The images of a request: a line of JSON, {"classes": [{"name": str, "sizes": [int]}], "query": [int]}, then they.

    Raises:
        BadRequestError: it has another form, or more classes or images than there may be.
    """
    end = content.find(b'\n', 0, _MOST_LINE)
    try:
        head = json.loads(content[:end] if end >= 0 else b'')
        names = [entry['name'] for entry in head['classes']]
        sizes = [entry['sizes'] for entry in head['classes']] + [head['query']]
        numbers = [size for some in sizes for size in some]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadRequestError('The request is not of the form that the page sends') from error
    if not all(isinstance(name, str) for name in names) or not all(type(size) is int and size >= 0 for size in numbers):
        raise BadRequestError('The request is not of the form that the page sends')
    if sum(numbers) != len(content) - end - 1:
        raise BadRequestError('The images are not as long as the request says')
    if len(numbers) > MOST_IMAGES or len(names) > MOST_CLASSES:
        raise BadRequestError(f'There may be {MOST_IMAGES:,} images and {MOST_CLASSES} classes; send fewer at once')
    names = [' '.join(name.split()) for name in names]
    if not all(0 < len(name) <= _LONGEST_NAME for name in names):
        raise BadRequestError(f'A class has no name, or one of more than {_LONGEST_NAME} characters; name each class')
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequestError(f'Two classes have the name {twice!r}; give each another name')
    place = end + 1
    groups = []
    for some in sizes:
        group = []
        for size in some:
            group.append(content[place : place + size])
            place += size
        groups.append(tuple(group))
    return Request(tuple(names), tuple(groups[:-1]), groups[-1])


def answer_of(network: TrainedNetwork, request: Request) -> dict[str, Any]:
    """What the page shows: an answer for each readable query image with the nearest examples, and what is unreadable.

    Raises:
        BadRequestError: no readable query image, or a class without a readable example.
        DataError, ConfigError: as `TrainedNetwork.classify`.
    """
    unreadable: list[dict[str, Any]] = []

    def readable(images: Sequence[bytes], number: int | None) -> list[int]:
        reasons = [_unreadable(image) for image in images]
        unreadable.extend({'class': number, 'image': i, 'reason': reason} for i, reason in enumerate(reasons) if reason)
        return [i for i, reason in enumerate(reasons) if not reason]

    supports = [readable(images, number) for number, images in enumerate(request.support)]
    for name, given, kept in zip(request.classes, request.support, supports, strict=True):
        if not kept:
            raise BadRequestError(f'{"No image can be read" if given else "There is no image"} of class {name!r}')
    queries = readable(request.query, None)
    if not queries:
        raise BadRequestError(
            f'{"None of the images" if request.query else "There is no image"} to classify can be read'
        )
    images = {
        name: [given[i] for i in kept]
        for name, given, kept in zip(request.classes, request.support, supports, strict=True)
    }
    answer = network.classify(images, [request.query[i] for i in queries])
    places = [(number, index) for number, kept in enumerate(supports) for index in kept]
    return {
        'answers': [_one(answer, row, image, places) for row, image in enumerate(queries)],
        'unreadable': unreadable,
        'calibrated': answer.temperature.images if answer.temperature is not None else 0,
        'probabilities': answer.probabilities is not None,
    }


def _one(answer: Answer, row: int, image: int, places: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The answer for one query image; `places` is of each support image its class and its number there."""
    likely = []
    if answer.probabilities is not None:
        order = (-answer.probabilities[row]).argsort(kind='stable')[:3]
        likely = [{'name': answer.classes[c], 'probability': float(answer.probabilities[row, c])} for c in order]
    coarse = None
    if answer.coarse_probabilities is not None:
        best = int(answer.coarse_probabilities[row].argmax())
        coarse = {'name': answer.coarse_classes[best], 'probability': float(answer.coarse_probabilities[row, best])}
    nearest = [
        {'class': places[support][0], 'image': places[support][1], 'cosine': float(cosine)}
        for support, cosine in zip(answer.nearest[row], answer.cosines[row], strict=True)
    ]
    return {'image': image, 'answer': answer.names[row], 'likely': likely, 'coarse': coarse, 'nearest': nearest}


def _unreadable(encoded: bytes) -> str:
    """Why an image cannot be classified; '' if it can."""
    try:
        height, width = size_of(encoded)
        if height * width > _MOST_PIXELS:
            return f'{height}×{width} pixels are too many; make it smaller'
        check_decodes(encoded)
    except UnreadableImageError as error:
        return str(error)
    return ''

"""Scalars and progress."""

import io
import json
import sys

from tensorboardX import SummaryWriter

from ancor_jax.runtime import metrics, progress
from ancor_jax.runtime.progress import Progress


def test_scalars_go_to_json_lines_and_tensorboard(tmp_path):
    with metrics.ScalarWriter(tmp_path / 'run', tensorboard=True) as writer:
        writer.write(3, {'loss': 1.5})
    with metrics.ScalarWriter(tmp_path / 'run', tensorboard=False, done=3) as writer:
        writer.write(4, {'loss': 1.25})
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert lines == [{'step': 3, 'loss': 1.5}, {'step': 4, 'loss': 1.25}]
    events = list((tmp_path / 'run' / 'tensorboard').glob('events.out.tfevents.*'))
    assert len(events) == 1
    assert b'loss' in events[0].read_bytes()
    assert SummaryWriter  # what ScalarWriter imports when asked to


def test_going_on_drops_what_is_done_again_and_torn_lines(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n{"step": 5, "lo')
    assert [line['step'] for line in metrics.read_scalars(path)] == [2, 4]
    with metrics.ScalarWriter(tmp_path, tensorboard=False, done=2) as writer:
        writer.write(3, {'loss': 0.75})
    assert [line['step'] for line in metrics.read_scalars(path)] == [2, 3]
    assert metrics.read_scalars(tmp_path / 'nothing.jsonl') == []


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
    out = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', out)
    with Progress('training', 4000, unit='images', done=1000) as bar:
        bar.update(100, 'loss 2.000')  # too soon for a line
        bar.update(1000, 'loss 1.500')
        bar.update(100)
        bar.update(1800, 'loss 1.000')  # the end gets a line whenever it comes
    assert out.getvalue().splitlines() == [
        'training: 2,100/4,000 images, loss 1.500, 100 images/s, 0:19 to go',
        'training: 4,000/4,000 images, loss 1.000, 150 images/s, 0:00 to go',
    ]


def test_a_bar_at_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    monkeypatch.setattr(sys, 'stderr', out)
    with Progress('training', 10, unit='images') as bar:
        bar.update(10, 'loss 1.000')
    assert 'training: 100%' in out.getvalue()
    assert 'loss 1.000' in out.getvalue()


def test_nothing_when_not_shown(capsys):
    with Progress('training', 1, unit='images', shown=False) as bar:
        bar.update(1)
    assert capsys.readouterr().err == ''


def test_hours():
    assert progress._clock(3725) == '1:02:05'
    assert progress._clock(65) == '1:05'

"""Progress at the terminal."""

import sys
import time
from typing import Any, Self

PLAIN_LINE_SECONDS = 10.0  # between lines of progress where there is no terminal


class Rate:
    """Images a second between one call and the next."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """From now."""
        self._last = time.monotonic()

    def update(self, count: int) -> float:
        """`count` more are done; their rate."""
        now = time.monotonic()
        rate = count / max(now - self._last, 1e-9)
        self._last = now
        return rate


class Progress:
    """A bar at a terminal, a line every few seconds elsewhere, nothing when not shown: loss, images/s, time to go."""

    def __init__(self, title: str, total: int, *, unit: str, done: int = 0, shown: bool = True) -> None:
        """`total` and `done` count `unit`s; the rate is units a second since this process started."""
        self._title, self._total, self._unit = title, total, unit
        self._first, self._done = done, done
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None
        self._shown = shown
        if shown and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:  # plain lines do
                return
            self._bar = tqdm(
                total=total, initial=done, desc=title, unit=f' {unit}', unit_scale=True, dynamic_ncols=True
            )

    def update(self, count: int, text: str = '') -> None:
        """`count` more are done; `text` (the loss, say) is shown beside the rate."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._shown and (now - self._last_line >= PLAIN_LINE_SECONDS or self._done >= self._total):
            self._last_line = now
            rate = (self._done - self._first) / max(now - self._start, 1e-9)
            to_go = (self._total - self._done) / max(rate, 1e-9)
            parts = [f'{self._title}: {self._done:,}/{self._total:,} {self._unit}', text]
            parts += [f'{rate:,.0f} {self._unit}/s', f'{_clock(to_go)} to go']
            print(', '.join(part for part in parts if part), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'

"""Draws docs/architecture.svg: the way of the data through training and evaluation.

python docs/make_architecture.py
"""

import pathlib
from html import escape

ROWS = (
    ('training', ('source', 'Dataset', 'order of an epoch', 'two views', 'train_step', 'checkpoint')),
    ('evaluation', ('checkpoint', 'TrainedModel', 'features', 'episodes', 'classifiers', 'results')),
    ('train_step', ('query pass', 'moving average', 'key pass', 'losses', 'SGD', 'enqueue')),
)
FOLDERS = {
    'source': 'data/sources',
    'Dataset': 'data',
    'order of an epoch': 'data/input_pipeline',
    'two views': 'views',
    'train_step': 'training/step',
    'checkpoint': 'runtime/checkpoint',
    'TrainedModel': 'evaluation',
    'features': 'evaluation',
    'episodes': 'fewshot/sampling',
    'classifiers': 'fewshot/classifiers',
    'results': 'evaluation/results',
    'query pass': 'models/network',
    'moving average': 'losses',
    'key pass': 'models/network',
    'losses': 'losses',
    'SGD': 'optax',
    'enqueue': 'losses/queue',
}
WIDTH, HEIGHT, GAP, LEFT, ROW = 150, 56, 28, 120, 110


def main() -> None:
    """Writes the picture."""
    total_width = LEFT + 6 * (WIDTH + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {ROW * len(ROWS) + 10}" '
        'font-family="system-ui, sans-serif" font-size="15">',
        '<style>rect{fill:#eef4fa;stroke:#0072b2}text{fill:#1c1c1c}.folder{fill:#555;font-size:12px}'
        'path{stroke:#555;fill:none;marker-end:url(#a)}'
        '@media(prefers-color-scheme:dark){rect{fill:#16324a;stroke:#56b4e9}text{fill:#eee}.folder{fill:#bbb}'
        'path{stroke:#bbb}}</style>',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<polygon points="0,0 8,4 0,8" fill="#777"/></marker></defs>',
    ]
    for row, (title, boxes) in enumerate(ROWS):
        top = row * ROW + 20
        parts.append(f'<text x="4" y="{top + HEIGHT / 2 + 5}" font-weight="600">{escape(title)}</text>')
        for column, box in enumerate(boxes):
            left = LEFT + column * (WIDTH + GAP)
            middle = left + WIDTH / 2
            parts.append(f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
            parts.append(f'<text x="{middle}" y="{top + 24}" text-anchor="middle">{escape(box)}</text>')
            parts.append(
                f'<text class="folder" x="{middle}" y="{top + 43}" text-anchor="middle">{escape(FOLDERS[box])}</text>'
            )
            if column:
                parts.append(f'<path d="M{left - GAP} {top + HEIGHT / 2}H{left - 1}"/>')
    parts.append('</svg>\n')
    pathlib.Path(__file__).with_name('architecture.svg').write_text('\n'.join(parts), encoding='utf-8')


if __name__ == '__main__':
    main()

"""The page of a run: its arithmetic against plain formulas, its words where something is missing, and in a browser."""

import base64
import dataclasses
import functools
import html
import io
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ancor_jax import report
from ancor_jax.commands import report as report_command
from ancor_jax.report import analysis, figures, gallery, outliers, page, photos, pictures, run_history, tsne

COARSE = ('<script>alert("coarse")</script>', 'plants & "trees"', '$birds$')
FINE = ('<img src=x onerror=alert(1)>', "it's", '_under', 'a' * 120, 'x&amp;y', '葉', '100 %', '{{ title }}', 'nine')
RESULT = {'classifier': 'lr', 'shots': 1, 'episodes': 1000, 'accuracy': 87.654, 'interval_95': 0.456}
RESULTS = {
    'results': [{**RESULT, 'protocol': 'nway', 'ways': [5, 5]}, {**RESULT, 'protocol': 'intra', 'ways': [3, 3]}],
    'probes': [{'probe': 'clustering', 'measure': 'NMI', 'value': 12.345, 'interval_95': None}],
}
SCALARS = [
    {'step': step, 'loss': 3.0 / step, 'classification_loss': 1.0 / step, 'contrast_loss': 2.0 / step,
     'class_accuracy': 0.5, 'contrast_accuracy': 0.25, 'learning_rate': 0.1, 'images_per_second': 100.0}
    for step in range(1, 9)
]  # fmt: skip


@functools.cache
def facts(per_class: int = 10, **changes) -> report.ReportData:
    """Nine fine classes in three coarse ones, embeddings around their class weight, images of two sizes."""
    rng = np.random.default_rng(0)
    fine = np.repeat(np.arange(len(FINE), dtype=np.int32), per_class)
    coarse = fine // 3
    weights = np.eye(3, 16, dtype=np.float32)
    centres = weights[np.arange(9) // 3] + rng.normal(0, 0.3, (9, 16))
    embeddings = (5 * (centres[fine] + rng.normal(0, 0.2, (len(fine), 16)))).astype(np.float32)
    pixels = rng.integers(0, 256, (len(fine), 40, 40, 3), dtype=np.uint8)
    whole = report.ReportData(
        title='ANCOR on <b>digits</b>',
        settings=(('Method', 'ANCOR & more'), ('Network', 'resnet12')),
        results=RESULTS,
        scalars=SCALARS,
        images=lambda index: pixels[index] if index % 2 else pixels[index].repeat(4, axis=0).repeat(5, axis=1),
        coarse=coarse,
        fine=fine,
        coarse_names=COARSE,
        fine_names=FINE,
        features=analysis.unit(embeddings),
        embeddings=embeddings,
        class_weights=weights,
        class_logits=embeddings @ weights.T,
        heat=lambda indices: (pixels[indices], pixels[indices, :4, :4, 0].astype(np.float32)),
    )
    return dataclasses.replace(whole, **changes)


def words(of: report.ReportData, path) -> str:
    """The text of its page."""
    report.write(of, path)
    return html.unescape(path.read_text(encoding='utf-8'))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 50), st.integers(0, 3))
def test_a_balanced_choice_takes_from_every_class_what_it_can(labels, number, seed):
    labels = np.array(labels)
    chosen = analysis.balanced(labels, number, np.random.default_rng(seed))
    assert len(set(chosen.tolist())) == len(chosen) == min(number, len(labels))
    taken, there = (np.bincount(which, minlength=5) for which in (labels[chosen], labels))
    more = np.flatnonzero(taken < there)  # classes that could give more have given as much as any, or one less
    assert all(taken[label] >= taken.max() - 1 for label in more)


@pytest.mark.parametrize('block', [1, 64, 2**24])
def test_neighbours_are_those_of_the_whole_matrix(monkeypatch, block):
    monkeypatch.setattr(analysis, '_BLOCK', block)
    features = analysis.unit(np.random.default_rng(0).normal(size=(37, 5)))
    similarity = features @ features.T
    np.fill_diagonal(similarity, -2)
    np.testing.assert_array_equal(analysis.nearest(features, 1)[:, 0], similarity.argmax(axis=1))
    queries = np.array([30, 3])
    np.testing.assert_array_equal(analysis.nearest(features, 8, queries), np.argsort(-similarity[queries])[:, :8])
    assert analysis.nearest(features[:3], 8).shape == (3, 2)


def test_pairs_count_confusions_both_ways():
    true, answered = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2]), np.array([1, 1, 0, 0, 1, 3, 3, 2, 2])
    assert analysis.confused_pairs(true, answered, 5) == [
        analysis.Pair(0, 1, 2, 1, pytest.approx(3 / 5)),
        analysis.Pair(2, 3, 2, 0, pytest.approx(2 / 4)),
    ]
    assert len(analysis.confused_pairs(true, answered, 1)) == 1
    assert analysis.confused_pairs(true, true, 5) == []
    counts = analysis.confusion(true, answered, 4)
    assert counts[0, 1] == 2
    assert counts.sum() == len(true)


def test_angles_to_the_own_and_to_the_nearest_other_weight():
    rng = np.random.default_rng(0)
    embeddings, weights = rng.normal(size=(20, 6)), rng.normal(size=(4, 6))
    labels = np.arange(20) % 5  # the last class has no weight
    found = analysis.angles(embeddings, weights, labels)
    for row, label in enumerate(labels):
        between = [
            np.degrees(np.arccos(embeddings[row] @ w / np.linalg.norm(embeddings[row]) / np.linalg.norm(w)))
            for w in weights
        ]
        others = [angle for c, angle in enumerate(between) if c != label]
        np.testing.assert_allclose(found.own[row], between[label] if label < 4 else np.nan)
        np.testing.assert_allclose(found.other[row], min(others))
    assert np.isnan(analysis.angles(embeddings, weights[:1], np.zeros(20, int)).other).all()


def test_heat_is_yellow_where_it_is_most():
    heat = np.zeros((4, 4))
    heat[0, 3] = 2.0
    plain, over = pictures.heat_over(np.full((20, 30, 3), 128, np.uint8), heat)
    assert plain.shape == over.shape
    assert plain.shape[1] / plain.shape[0] == pytest.approx(1.5, rel=0.02)
    hot, cold = over[2, -3].astype(int), over[-3, 2].astype(int)
    assert hot[0] > 150
    assert hot[0] - hot[2] > 50 > cold[0] - cold[2]
    assert np.ptp(pictures.heat_over(np.zeros((8, 8, 3), np.uint8), np.ones((2, 2)))[1], axis=(0, 1)).max() == 0


def test_long_curves_are_averaged_and_class_looks_differ():
    steps = np.arange(10_000.0)
    x, y = figures.averaged(steps, 2 * steps)
    assert len(x) < 1000
    np.testing.assert_allclose(y, 2 * x)
    looks = {(look.colour, look.marker) for look in map(figures.style, range(figures.STYLES))}
    assert len(looks) == figures.STYLES


def test_a_map_keeps_groups_apart():
    everything = facts()
    drawn = tsne.project(everything.vectors, everything.weights, seed=0)
    assert drawn.points.shape == (90, 2)
    assert drawn.weights.shape == (3, 2)
    assert tsne.agreement(drawn.points, everything.coarse) > 0.95
    assert tsne.project(np.ones((20, 4)), None, seed=0) is None
    np.testing.assert_array_equal(tsne.medians(np.array([[0, 0], [1, 5], [2, 1]]), np.zeros(3))[0], [1, 1])


@pytest.mark.parametrize(
    ('changes', 'sentences'),
    [
        (
            {'class_weights': None, 'class_logits': None, 'heat': None, 'results': {}, 'scalars': []},
            ['There are no class weights to draw', 'so there are no angles', 'no class logits', 'no feature maps',
             'not been evaluated yet', 'None were evaluated', 'no scalars'],
        ),
        (
            {'embeddings': None,
             'heat': lambda indices: (np.zeros((len(indices), 4, 4, 3), np.uint8), np.ones((len(indices), 1, 1)))},
            ['Map of the features', 'no embedding, so these are the features', 'no angles', 'has 1×1 cells, too few'],
        ),
        (
            {'trained_on': 'fine', 'class_weights': np.eye(6, 16), 'class_logits': np.eye(9, 6)[np.arange(90) // 10]},
            ['the weight of each fine class', 'right coarse class for 66.7 %', '30 images of classes without a weight'],
        ),
    ],
    ids=['no classifier', 'no embedding', 'fine'],
)  # fmt: skip
def test_what_is_missing_is_said(tmp_path, changes, sentences):
    text = words(dataclasses.replace(facts(), **changes), tmp_path / 'report.html')
    for sentence in sentences:
        assert sentence in text


def test_without_fine_labels_the_page_is_of_coarse_classes(tmp_path):
    whole = facts()
    text = words(
        dataclasses.replace(whole, fine=None, fine_names=(), results={'results': [], 'probes': []}), tmp_path / 'r.html'
    )
    for sentence in (
        'There are no few-shot episodes',
        'as many of each coarse class',
        'The fine classes of the test images are unknown',
        'the weight of its own class',
        'Most confused coarse classes',
        'of the same coarse class. Below',
        'has the right coarse class for',
    ):
        assert sentence in text
    assert 'same fine class' not in text
    assert not any(name in text for name in FINE[3:])
    training = words(dataclasses.replace(whole, fine=None, split='training', results={}), tmp_path / 'training.html')
    assert 'Training image: ' in training
    assert 'test image' not in training


def test_images_far_from_their_class_come_farthest_first(tmp_path):
    whole = facts()
    weights = whole.class_weights
    embeddings = 5 * weights[whole.coarse]
    coarse = whole.coarse.copy()
    coarse[[3, 70]] = [2, 1]  # wrong labels
    wrong = dataclasses.replace(
        whole, embeddings=embeddings, coarse=coarse, class_weights=weights + 0.1 * weights[[1, 2, 0]]
    )
    section = outliers.far_from_class(wrong, photos.Photos(wrong))
    assert '2 of 90 test images are nearer to the weight of another class' in section.text[0]
    (strips,) = section.blocks
    assert {strip.title for strip in strips.strips} == {
        f'{COARSE[2]}, nearer to {COARSE[0]}', f'{COARSE[1]}, nearer to {COARSE[2]}'
    }  # fmt: skip
    angles = [float(strip.photos[0].caption.partition('°')[0]) for strip in strips.strips]
    assert angles == sorted(angles, reverse=True)
    without = dataclasses.replace(wrong, class_weights=None, features=analysis.unit(embeddings))
    assert (
        '2 of 90 test images are nearer to the mean of the features'
        in (outliers.far_from_class(without, photos.Photos(without)).text[0])
    )


def test_class_means_and_the_nearest_centre():
    vectors = np.array([[1.0, 0], [3, 0], [0, 2]])
    means = analysis.class_means(vectors, np.array([0, 0, 2]), 3)
    np.testing.assert_allclose(means, [[2, 0], [0, 0], [0, 2]])
    np.testing.assert_array_equal(analysis.nearest_centre(vectors, means), [0, 0, 2])


def test_a_scalar_that_was_written_once_is_a_sentence_and_not_a_curve():
    section = run_history.training([{'step': 5, 'loss': 2.0}, {'step': 9, 'loss': 1.0, 'validation_accuracy': 81.25}])
    assert [chart.title for chart in section.blocks[0].charts] == ['Loss']
    assert 'Few-shot accuracy during training, validation accuracy: 81.25 %' in section.text[-1]


def test_figures_keep_the_very_colours_of_the_legend():
    points = np.random.default_rng(0).normal(size=(400, 2))
    labels = np.arange(400) % len(figures.COLOURS)
    drawn = figures.embedding_map(points, labels, points[: len(figures.COLOURS)], np.arange(len(figures.COLOURS)))
    encoded = base64.b64decode(pictures.lossless(drawn).partition(',')[2])
    colours = {colour for _, colour in Image.open(io.BytesIO(encoded)).getcolors(2**24)}
    for colour in figures.COLOURS:  # the stars are opaque
        assert tuple(bytes.fromhex(colour[1:])) in colours


def test_names_break_between_words_alone():
    assert page.breakable('electronic_equipment') == 'electronic_<wbr>equipment'
    assert page.breakable('a/b <i>') == 'a/<wbr>b &lt;i&gt;'
    assert page.breakable('12.5 ± 3.0') == '12.5 ± 3.0'


@pytest.mark.parametrize(
    ('network', 'of_data', 'order'),
    [
        (('a', 'b', 'c'), ('a', 'b', 'c'), []),
        (('a', 'b'), ('a', 'b', 'new'), []),
        (('a', 'b', 'c'), ('c', 'a'), [2, 0, 1]),
        (('a', 'b'), ('b', 'new'), None),
        ((), ('a',), []),
    ],
)
def test_classes_of_the_network_are_matched_with_those_of_the_data_by_name(network, of_data, order):
    found = report_command.class_order(network, of_data)
    assert order is None if found is None else found.tolist() == order


@pytest.mark.parametrize('number', [1, 3, 9])
def test_few_images_make_a_page_too(tmp_path, number):
    whole = facts(per_class=1)
    arrays = {name: getattr(whole, name)[:number] for name in ('coarse', 'fine', 'features', 'embeddings')}
    text = words(dataclasses.replace(whole, **arrays, class_logits=whole.class_logits[:number]), tmp_path / 'r.html')
    assert ('too few for a map' in text) == (number < tsne.FEWEST)
    assert ('single test image' in text) == (number == 1)
    assert ('the only one of their fine class' in text) == (number > 1)


def test_numbers_stand_on_the_page_and_the_same_seed_gives_the_same_page(tmp_path):
    text = words(facts(), tmp_path / 'one.html')
    assert '87.65 ± 0.46' in text
    assert 'intra-class (3-way) 1-shot' in text
    assert '<td>12.35</td>' in text or '<td>12.34</td>' in text
    assert 'class from 50 at step 1' in text  # a share becomes per cent
    told = []
    report.write(facts(), tmp_path / 'two.html', points=90, progress=told.append)
    assert any('90 of 90' in line for line in told)
    assert (tmp_path / 'one.html').read_bytes() == (tmp_path / 'two.html').read_bytes()


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    def unreadable(index):
        raise OSError('gone')

    path = tmp_path / 'report.html'
    path.write_text('the old one')
    with pytest.raises(OSError, match='gone'):
        report.write(dataclasses.replace(facts(per_class=2), images=unreadable), path)
    assert [found.read_text() for found in tmp_path.iterdir()] == ['the old one']


def test_facts_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match='features has 5 rows and coarse has 90'):
        dataclasses.replace(facts(), features=np.zeros((5, 2)))
    with pytest.raises(ValueError, match='fine labels run from -1 to 7'):
        dataclasses.replace(facts(), fine=facts().fine - 1)
    with pytest.raises(ValueError, match='no test images'):
        dataclasses.replace(facts(), coarse=np.zeros(0, np.int32))


def test_the_page_in_a_browser(tmp_path):
    browser_path = shutil.which('chromium')
    if browser_path is None:
        pytest.skip('no chromium on this machine: apt-get install chromium')
    from playwright.sync_api import sync_playwright

    path = tmp_path / 'report.html'
    report.write(facts(), path)
    marks = ('', 'right', 'wrong')
    pictures_of_class = [gallery.Picture(facts().images(i), FINE[0], '97%', marks[i % 3]) for i in range(6)]
    sorted_images = tmp_path / 'gallery.html'
    groups = [gallery.Group(name, pictures_of_class[:2], pictures_of_class, 9) for name in COARSE]
    matrix = gallery.Matrix(COARSE, COARSE, np.arange(9).reshape(3, 3).tolist())
    html_of = gallery.page('18 images', 'ANCOR', groups, ['x.png cannot be read'], matrix)
    sorted_images.write_text(html_of, encoding='utf-8')
    complaints = []

    def watch(request):
        if not request.url.startswith(('file:', 'data:')):
            complaints.append(request.url)

    def dismiss(dialog):
        complaints.append(dialog.message)
        dialog.dismiss()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=['--no-sandbox'])
        page = browser.new_page()
        page.on('console', lambda message: complaints.append(message.text))
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.on('dialog', dismiss)
        page.on('request', watch)
        page.on('requestfailed', lambda request: complaints.append(request.url[:80]))
        for width, height in ((390, 844), (1280, 900)):
            page.set_viewport_size({'width': width, 'height': height})
            page.goto(path.as_uri(), wait_until='load')
            images = page.evaluate('[...document.images].map(i => [i.naturalWidth, i.alt])')
            assert len(images) > 50
            assert all(pixels > 0 and alt.strip() for pixels, alt in images)
            assert page.evaluate('document.documentElement.scrollWidth') <= width
            boxes = page.evaluate("[...document.querySelectorAll('.box')].map(b => b.scrollWidth > b.clientWidth)")
            assert not any(boxes)  # no table is cut at an edge
            cut = "[...document.querySelectorAll('figcaption, h4, th')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            assert page.evaluate(f'{cut}.map(e => e.textContent)') == []
        targets = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
        assert len(targets) > 5
        assert all(page.query_selector(target) for target in targets)
        text = page.inner_text('body')
        assert all(name in text for name in (*COARSE, *FINE))
        assert page.title() == 'ANCOR on <b>digits</b>'

        page.set_viewport_size({'width': 390, 'height': 844})
        page.goto(sorted_images.as_uri(), wait_until='load')
        page.evaluate("[...document.images].forEach(i => i.loading = 'eager')")  # without scrolling to each
        page.wait_for_function('[...document.images].every(i => i.naturalWidth > 0)')
        assert page.evaluate('[...document.images].filter(i => i.alt.trim()).length') == 3 * (2 + 6)
        assert page.evaluate('document.documentElement.scrollWidth') <= 390
        assert all(name in page.inner_text('body') for name in COARSE)
        assert page.evaluate("document.querySelectorAll('figure.wrong').length") == 3 * 2
        assert page.inner_text('tbody tr:last-child').split() == [*COARSE[2].split(), '6', '7', '8']
        browser.close()
    assert complaints == []

"""Episodes against their definition; classifiers against the reference's outputs and scikit-learn."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ancor_jax import fewshot
from ancor_jax.fewshot import calibration, classifiers, logistic
from tests import golden

# One episode, for the tests that look at the solution itself.
fit = jax.jit(fewshot.logistic_regression, static_argnames=('ways', 'tolerance', 'max_steps'))


def split(seed: int, classes: int = 9, per_class: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled fine labels of a small split, and coarse classes of 1, 2, 3, ... fine classes."""
    fine = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes) * 3 + 1, per_class))
    coarse_of = np.concatenate([np.full(size, 10 * size) for size in range(1, classes + 1)])[:classes]
    return fine, coarse_of[(fine - 1) // 3]


def features(seed: int, ways: int, copies: int, queries: int, dim: int, noise: float = 0.3) -> tuple:
    """Unit features of one episode, supports in near-identical copies: support, labels, query, labels."""
    rng = np.random.default_rng(seed)
    prototype = rng.normal(size=(ways, 1, dim))
    support = prototype + rng.normal(size=(ways, 1, dim)) + noise * rng.normal(size=(ways, copies, dim))
    query = prototype + rng.normal(size=(ways, queries, dim))

    def unit(x: np.ndarray) -> np.ndarray:
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).reshape(-1, dim).astype(np.float32)

    labels = np.arange(ways, dtype=np.int32)
    return unit(support), labels.repeat(copies), unit(query), labels.repeat(queries)


def exact(support: np.ndarray, labels: np.ndarray, query: np.ndarray) -> np.ndarray:
    """scikit-learn's multinomial probabilities, converged in float64. Two classes: C = 2 is the same."""
    inverse_penalty = 2.0 if np.unique(labels).size == 2 else 1.0
    model = LogisticRegression(C=inverse_penalty, tol=1e-10, max_iter=100_000)
    return model.fit(support.astype(np.float64), labels).predict_proba(query.astype(np.float64))


def agree_up_to_ties(
    predictions: np.ndarray, expected: np.ndarray, probabilities: np.ndarray, tie: float = 1e-3
) -> None:
    """Equal labels, except where the probabilities of the two best classes are within `tie`."""
    best = np.sort(probabilities, axis=-1)
    clear = best[..., -1] - best[..., -2] > tie
    assert clear.mean() > 0.7
    np.testing.assert_array_equal(np.asarray(predictions)[clear], expected[clear])


# Episodes


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    protocol=st.sampled_from(fewshot.PROTOCOLS),
    ways=st.integers(2, 6),
    shots=st.integers(1, 3),
    queries=st.integers(1, 4),
)
def test_episodes_are_what_the_protocol_says(seed: int, protocol: str, ways: int, shots: int, queries: int) -> None:
    fine, coarse = split(seed)
    drawn = fewshot.episodes(
        seed,
        fine,
        protocol=protocol,
        ways=ways,
        shots=shots,
        queries=queries,
        num_episodes=4,
        coarse_labels=coarse,
    )
    for episode in drawn:
        expected_ways = {'nway': ways, 'allway': 9}.get(protocol)
        if protocol == 'intra':
            (group,) = np.unique(coarse[episode.support])
            inside = np.unique(fine[coarse == group]).size
            assert inside >= 2
            expected_ways = min(ways, inside)
        assert episode.classes.shape == (expected_ways,)
        assert np.unique(episode.classes).size == expected_ways
        assert episode.support.shape == (expected_ways, shots)
        assert episode.query.shape == (expected_ways, queries)
        assert all(array.dtype == np.int32 for array in episode)
        images = np.concatenate([episode.support, episode.query], axis=1)
        assert np.unique(images).size == images.size  # no image twice, so supports and queries are disjoint
        np.testing.assert_array_equal(fine[images], np.broadcast_to(episode.classes[:, None], images.shape))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), protocol=st.sampled_from(fewshot.PROTOCOLS), shorter=st.integers(1, 5))
def test_episodes_depend_on_the_seed_alone_and_a_shorter_list_is_a_prefix(
    seed: int, protocol: str, shorter: int
) -> None:
    fine, coarse = split(0)

    def draw(seed: int, count: int) -> list[list[list]]:
        drawn = fewshot.episodes(seed, fine, protocol=protocol, queries=5, num_episodes=count, coarse_labels=coarse)
        return [[array.tolist() for array in episode] for episode in drawn]

    longer = draw(seed, 6)
    assert draw(seed, shorter) == longer[:shorter]
    assert draw(seed + 1, 6) != longer
    assert longer[0] != longer[1]


def test_every_class_and_image_gets_its_turn() -> None:
    fine, coarse = split(1)
    for protocol in fewshot.PROTOCOLS:
        drawn = fewshot.episodes(0, fine, protocol=protocol, ways=3, queries=3, num_episodes=400, coarse_labels=coarse)
        allowed = np.flatnonzero(coarse > 10) if protocol == 'intra' else np.arange(fine.size)
        np.testing.assert_array_equal(np.unique(np.concatenate([e.support.ravel() for e in drawn])), allowed)
        np.testing.assert_array_equal(np.unique(np.concatenate([e.query.ravel() for e in drawn])), allowed)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'queries': 7}, r'fine class 1 has 7 images, an episode needs 8 .*lower shots or queries'),
        ({'protocol': '5way'}, 'unknown episode protocol .*nway, allway, intra'),
        ({'ways': 10}, 'has 9 fine classes, ways is 10: lower ways'),
        ({'ways': 1}, 'at least 2 ways'),
        ({'fine_labels': np.zeros((3, 2), int)}, 'give a non-empty'),
        ({'protocol': 'intra', 'coarse_labels': None}, 'give coarse_labels'),
        ({'protocol': 'intra', 'coarse_labels': np.zeros(5, int)}, 'align them'),
        ({'protocol': 'intra', 'coarse_labels': np.arange(63)}, 'is in 7 coarse classes'),
        ({'protocol': 'intra', 'coarse_labels': split(0)[0]}, 'no coarse class has two fine classes'),
    ],
)
def test_episodes_refuse(change: dict, message: str) -> None:
    fine, coarse = split(0)
    arguments = {'fine_labels': fine, 'protocol': 'nway', 'queries': 3, 'coarse_labels': coarse} | change
    with pytest.raises(ValueError, match=message):
        fewshot.episodes(0, arguments.pop('fine_labels'), **arguments)


# Classifiers against the reference


@pytest.mark.parametrize(('name', 'suffix'), [('fewshot', ''), ('fewshot_b', '_b')])
def test_logistic_regression_gives_the_references_labels_and_the_exact_probabilities(name: str, suffix: str) -> None:
    data = golden.load(name)
    labels = golden.load('fewshot')['support_ys']
    support, query = data['support' + suffix], data['query' + suffix]
    probabilities = fewshot.probabilities('lr', support, labels, query, ways=5)
    np.testing.assert_allclose(probabilities, data['lr_proba_exact' + suffix], atol=1e-5)
    predictions = fewshot.classify('lr', support, labels, query, ways=5)
    assert predictions.dtype == jnp.int32
    agree_up_to_ties(predictions, data['pred_LR' + suffix], data['lr_proba_exact' + suffix])
    then = golden.load('fewshot_sklearn024')  # the scikit-learn of the reference's time, default tolerance
    np.testing.assert_allclose(probabilities, then['lr_proba' + suffix], atol=2e-3)
    agree_up_to_ties(predictions, then['pred_LR' + suffix], data['lr_proba_exact' + suffix])


def test_logistic_regression_finds_the_exact_weights_and_intercept() -> None:
    data = golden.load('fewshot')
    for e in range(3):
        result = fit(data['support'][e], data['support_ys'].astype(np.int32), jnp.ones(25, bool), ways=5)
        np.testing.assert_allclose(result.weights, data['lr_coef_exact'][e], atol=2e-5)
        np.testing.assert_allclose(result.intercept, data['lr_intercept_exact'][e], atol=2e-5)
        assert result.gradient_norm <= logistic.TOLERANCE
        assert 0 < result.steps < 15


def test_two_classes_are_penalised_as_a_multinomial() -> None:
    data = golden.load('lr_two_class')
    probabilities = fewshot.probabilities('lr', data['s'], data['y'], data['q'], ways=2)
    assert probabilities.shape == (30, 2)
    np.testing.assert_allclose(probabilities[:, 1], data['p1_multinomial'], atol=1e-3)
    np.testing.assert_allclose(probabilities, exact(data['s'], data['y'], data['q']), atol=1e-5)
    assert np.abs(probabilities[:, 1] - data['p1_binary']).max() > 0.01


@pytest.mark.parametrize(('method', 'name'), [('nn', 'NN'), ('cosine', 'Cosine')])
def test_nearest_support_gives_the_references_labels(method: str, name: str) -> None:
    a, b = golden.load('fewshot'), golden.load('fewshot_b')
    labels = a['support_ys']
    both = [np.concatenate([a[part], b[part + '_b']], axis=-1) for part in ('support', 'query')]
    for support, query, expected in [
        (a['support'], a['query'], a['pred_' + name]),
        (b['support_b'], b['query_b'], b[f'pred_{name}_b']),
        (a['raw_support'], a['raw_query'], a['raw_pred_' + name]),
        (*both, a['pred_concat_' + name]),
    ]:
        predictions = fewshot.classify(method, support, labels, query, ways=5)
        np.testing.assert_array_equal(predictions, expected)
    assert (a['raw_pred_NN'] != a['raw_pred_Cosine']).any()  # the raw features tell the two methods apart


def test_concat_and_unnormalised_features_give_the_references_lr_labels() -> None:
    a, b = golden.load('fewshot'), golden.load('fewshot_b')
    labels = a['support_ys']
    support, query = (np.concatenate([a[part], b[part + '_b']], axis=-1) for part in ('support', 'query'))
    probabilities = np.asarray(fewshot.probabilities('lr', support, labels, query, ways=5))
    agree_up_to_ties(probabilities.argmax(-1), a['pred_concat_LR'], probabilities)
    raw = np.asarray(fewshot.probabilities('lr', a['raw_support'], labels, a['raw_query'], ways=5))
    # Norms of 20: far from the Hessian that our solver is scaled for. The reference's labels come from
    # scikit-learn's default tolerance, which stops up to 0.11 from the exact probabilities here.
    for e in range(3):
        np.testing.assert_allclose(raw[e], exact(a['raw_support'][e], labels, a['raw_query'][e]), atol=5e-4)
    agree_up_to_ties(raw.argmax(-1), a['raw_pred_LR'], raw, tie=0.1)


def test_ensemble_is_the_references_geometric_mean() -> None:
    a, b = golden.load('fewshot'), golden.load('fewshot_b')
    reference = fewshot.ensemble(a['lr_proba'], b['lr_proba_b'])
    np.testing.assert_allclose(reference, a['ensemble_gmean'], rtol=1e-5)
    np.testing.assert_array_equal(np.argmax(reference, axis=-1), a['pred_ensemble'])
    tiny = jnp.full((1, 2), 1e-30)
    np.testing.assert_allclose(fewshot.ensemble(tiny, tiny), tiny, rtol=1e-5)


@pytest.mark.parametrize(('method', 'name'), [('nn', 'NN'), ('cosine', 'Cosine')])
def test_cascade_gives_the_references_labels(method: str, name: str) -> None:
    a, b = golden.load('fewshot'), golden.load('fewshot_b')
    predictions = fewshot.cascade(
        method,
        b['support_b'],
        a['support_ys'],
        b['query_b'],
        ways=5,
        support_coarse=a['coarse_pred_support'],
        query_coarse=a['coarse_pred_query'],
    )
    np.testing.assert_array_equal(predictions, a['pred_cascade_' + name])


def test_cascade_with_logistic_regression() -> None:
    support, labels, query, _ = features(3, ways=4, copies=3, queries=5, dim=16)
    coarse = np.array([0, 0, 1, 2]).repeat(3)  # two classes share 0, class 2 is alone in 1, 3 is alone in 2
    query_coarse = np.arange(20) % 4  # no support has coarse class 3
    predictions = fewshot.cascade(
        'lr',
        support[None],
        labels,
        query[None],
        ways=4,
        support_coarse=coarse[None],
        query_coarse=query_coarse[None],
    )[0]
    np.testing.assert_array_equal(predictions[query_coarse == 1], 2)
    np.testing.assert_array_equal(predictions[query_coarse == 2], 3)
    inside = exact(support[coarse == 0], labels[coarse == 0], query[query_coarse == 0])
    np.testing.assert_array_equal(predictions[query_coarse == 0], inside.argmax(-1))
    fallback = exact(support, labels, query[query_coarse == 3])
    np.testing.assert_array_equal(predictions[query_coarse == 3], fallback.argmax(-1))
    with pytest.raises(ValueError, match='support_coarse has shape'):
        fewshot.cascade(
            'nn', support[None], labels, query[None], ways=4, support_coarse=coarse, query_coarse=query_coarse
        )


# Classifiers against scikit-learn


@pytest.mark.parametrize(
    ('ways', 'copies', 'dim', 'noise'),
    [
        (5, 5, 640, 0.3),  # the published episode
        (2, 4, 32, 0.3),
        (3, 1, 8, 0.0),
        (5, 4, 48, 0.0),  # exact copies
        (6, 10, 7, 0.5),  # more supports than dimensions
    ],
)
def test_logistic_regression_is_scikit_learns(ways: int, copies: int, dim: int, noise: float) -> None:
    support, labels, query, _ = features(ways, ways, copies, 6, dim, noise)
    probabilities = fewshot.probabilities('lr', support, labels, query, ways=ways)
    np.testing.assert_allclose(probabilities, exact(support, labels, query), atol=1e-5)


def test_logistic_regression_with_unbalanced_large_and_constant_features() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 2, 2], np.int32)
    normal = rng.normal(size=(16, 12)).astype(np.float32)
    for scale, error in ((1e-2, 1e-5), (1.0, 1e-5), (10.0, 2e-3)):
        support, query = scale * normal[:9], scale * normal[9:]
        probabilities = fewshot.probabilities('lr', support, labels, query, ways=3)
        np.testing.assert_allclose(probabilities, exact(support, labels, query), atol=error)
    # Features that say nothing leave the class frequencies.
    constant = fewshot.probabilities('lr', np.ones_like(support), labels, np.ones_like(query), ways=3)
    np.testing.assert_allclose(constant, np.tile([6 / 9, 1 / 9, 2 / 9], (7, 1)), atol=1e-4)


def test_masked_supports_and_absent_classes_do_not_count() -> None:
    support, labels, query, _ = features(5, 5, 4, 3, 24)
    mask = (labels != 1) & (np.arange(20) % 4 != 3)
    result = fit(support, labels, jnp.asarray(mask), ways=5)
    probabilities = jax.nn.softmax(query @ result.weights.T + result.intercept[None])
    present = [0, 2, 3, 4]
    np.testing.assert_allclose(probabilities[:, present], exact(support[mask], labels[mask], query), atol=1e-4)
    np.testing.assert_array_equal(probabilities[:, 1], 0)
    for method in ('lr', 'knn'):
        predictions = fewshot.classify(method, support[labels != 1], labels[labels != 1], query, ways=5)
        assert not (np.asarray(predictions) == 1).any()


@pytest.mark.parametrize('supports', [4, 30, 45])  # fewer than 30: the reference fails, all of them vote here
def test_knn_is_scikit_learns(supports: int) -> None:
    rng = np.random.default_rng(supports)
    support = rng.normal(size=(supports, 6)).astype(np.float32)
    query = rng.normal(size=(40, 6)).astype(np.float32)
    query[:3] = support[:3]  # exact matches take the whole vote
    labels = (np.arange(supports) % 4).astype(np.int32)
    model = KNeighborsClassifier(min(30, supports), weights='distance', algorithm='brute')
    expected = model.fit(support.astype(np.float64), labels).predict(query.astype(np.float64))
    np.testing.assert_array_equal(fewshot.classify('knn', support, labels, query, ways=4), expected)
    np.testing.assert_array_equal(expected[:3], labels[:3])


# Calibration


def test_held_out_scores_are_those_of_a_classifier_without_the_image() -> None:
    support, labels, _, _ = features(0, ways=3, copies=6, queries=1, dim=12)
    images = np.arange(18) // 2  # two copies of each
    found = fewshot.held_out_scores('lr_balanced', support, labels, images, ways=3)
    for image in (0, 4, 8):
        out = images == image
        expected = fewshot.class_scores('lr_balanced', support[~out], labels[~out], support[out], ways=3)
        np.testing.assert_allclose(found[out], expected, atol=1e-4)


def test_many_supports_are_left_out_in_parts_that_leave_some_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, 'MOST_FOLDS', 4)
    labels = np.array([0] * 2 + [1] * 20).repeat(3)
    images = np.arange(22).repeat(3)
    fold = calibration._folds(labels, images)
    assert fold.max() < 4
    for part in range(fold.max() + 1):
        assert set(labels[fold != part]) == {0, 1}
    for image in range(22):
        assert len(set(fold[images == image])) == 1


def test_the_fitted_temperature_is_the_one_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 4, (4000, 3))
    for true in (0.5, 1.0, 3.0):
        noise = rng.gumbel(size=scores.shape)
        labels = (scores / true + noise).argmax(axis=1)
        fitted = fewshot.fit_temperature(scores, labels, default=1.0, weight=4000)
        assert fitted == pytest.approx(true, rel=0.15)
        before, after = (
            fewshot.expected_calibration_error(fewshot.calibrated(scores, value), labels) for value in (10.0, fitted)
        )
        assert after < 0.03 < before
    # A few scores, all right, do not make the temperature vanish.
    assert fewshot.fit_temperature(np.eye(3), np.arange(3), default=0.5, weight=3) > 0.05


def test_one_image_of_a_class_leaves_the_default_temperature() -> None:
    support, labels, _, _ = features(0, ways=3, copies=4, queries=1, dim=12)
    images = np.where(labels == 2, 8, np.arange(12))  # four copies of the one image of the last class
    found = fewshot.temperature('lr_balanced', support, labels, images, ways=3)
    assert found == (fewshot.CLASSIFIERS['lr_balanced'].temperature, 0)


# Properties


@pytest.mark.parametrize(
    'module', ['calibration', 'classifiers', 'ensembling', 'logistic', 'priors', 'sampling', 'statistics']
)
def test_the_examples_of_docstrings_give_what_they_say(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f'ancor_jax.fewshot.{module}'))
    assert found.attempted > 0
    assert not found.failed


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**31), method=st.sampled_from(sorted(fewshot.CLASSIFIERS)))
def test_predictions_follow_permutations(seed: int, method: str) -> None:
    support, labels, query, _ = features(seed, ways=3, copies=2, queries=5, dim=8)
    rng = np.random.default_rng(seed)
    of_support, of_query, of_class = rng.permutation(6), rng.permutation(15), rng.permutation(3)
    plain = np.asarray(fewshot.classify(method, support, labels, query, ways=3))
    permuted = fewshot.classify(method, support[of_support], of_class[labels[of_support]], query[of_query], ways=3)
    probabilities = np.sort(fewshot.probabilities('lr', support, labels, query, ways=3), axis=-1)
    tie = (probabilities[:, -1] - probabilities[:, -2] < 1e-3) if method == 'lr' else np.zeros(15, bool)
    same = np.asarray(permuted) == of_class[plain][of_query]
    assert (same | tie[of_query]).all()


@pytest.mark.parametrize('method', fewshot.CLASSIFIERS)
def test_a_batch_in_chunks_is_its_episodes_one_by_one(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = golden.load('fewshot')
    support, query = data['support'][:5], data['query'][:5]
    labels = np.stack([np.roll(data['support_ys'], shift) for shift in range(5)])
    monkeypatch.setattr(classifiers, '_MAX_CHUNK', 2)  # two chunks and a rest
    classifiers._solve_in_chunks.clear_cache()  # the limit is read while tracing
    batch = fewshot.classify(method, support, labels, query, ways=5)
    assert batch.shape == (5, 75)
    for e in range(5):
        single = fewshot.classify(method, support[e], labels[e], query[e], ways=5)
        assert single.shape == (75,)
        np.testing.assert_array_equal(batch[e], single)
    # By reference: a table of all features, shuffled, and where each lies in it.
    place = np.random.default_rng(0).permutation(5 * 100).astype(np.int32)
    table = np.zeros((500, support.shape[2]), np.float32)
    table[place[:125]], table[place[125:]] = support.reshape(125, -1), query.reshape(375, -1)
    rows = fewshot.Rows(table, place[:125].reshape(5, 25)), fewshot.Rows(table, place[125:].reshape(5, 75))
    np.testing.assert_array_equal(fewshot.classify(method, rows[0], labels, rows[1], ways=5), batch)
    with pytest.raises(ValueError, match='rows run from 0 to 500, and the table has 500'):
        fewshot.classify(method, rows[0]._replace(rows=np.array([[0, 500]])), labels[:1], rows[1], ways=5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'method': 'svm'}, "unknown few-shot method 'svm': use one of lr, lr_balanced, prototype, nn, cosine, knn"),
        ({'query': np.zeros((2, 3, 9))}, 'the same E and d'),
        ({'query': np.zeros((3, 8))}, 'the same E and d'),
        ({'support': np.zeros((2, 0, 8))}, 'none of them empty'),
        ({'support_labels': np.zeros(5, int)}, r'give integers of shape \(2, 4\) or \(4,\)'),
        ({'support_labels': np.zeros(4)}, 'support_labels is float64'),
        ({'support_labels': np.array([0, 1, 2, 3])}, r'lie in 0 \.\.\. 3, ways is 3'),
    ],
)
def test_classify_refuses(change: dict, message: str) -> None:
    arguments = {
        'method': 'nn',
        'support': np.zeros((2, 4, 8)),
        'support_labels': np.array([0, 1, 2, 2]),
        'query': np.zeros((2, 3, 8)),
    } | change
    with pytest.raises(ValueError, match=message):
        fewshot.classify(**arguments, ways=3)


# Statistics


@pytest.mark.parametrize('name', ['LR', 'NN', 'Cosine', 'ensemble', 'concat_LR', 'cascade_NN'])
def test_accuracy_and_interval_are_the_references(name: str) -> None:
    data = golden.load('fewshot')
    accuracies = fewshot.accuracy(data['pred_' + name], data['query_ys'])
    if 'acc_' + name in data:
        np.testing.assert_allclose(accuracies, data['acc_' + name], rtol=1e-12)
    np.testing.assert_allclose(fewshot.mean_and_interval(accuracies), data['ci_' + name], rtol=1e-9)


def test_statistics_refuse() -> None:
    with pytest.raises(ValueError, match='at least 2'):
        fewshot.mean_and_interval([0.5])
    with pytest.raises(ValueError, match='align them'):
        fewshot.accuracy(np.zeros((2, 3)), np.zeros(2))


def test_normalize() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    x[0, 0] = 0
    normalized = np.asarray(fewshot.normalize(x))
    norm = np.linalg.norm(normalized, axis=-1)
    assert norm[0, 0] == 0
    np.testing.assert_allclose(norm.ravel()[1:], 1, rtol=1e-6)
    np.testing.assert_allclose(normalized * np.linalg.norm(x, axis=-1, keepdims=True), x, atol=1e-6)


@pytest.mark.parametrize('counts', [(5, 1, 1, 1), (3, 2, 1, 1), (20, 5, 2, 1), (2, 2, 2, 2)])
def test_balanced_logistic_regression_is_scikit_learns(counts):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    centres = rng.normal(size=(len(counts), 16))
    support = np.asarray(fewshot.normalize((centres[labels] + rng.normal(size=(len(labels), 16))).astype(np.float32)))
    query = np.asarray(fewshot.normalize(rng.normal(size=(40, 16)).astype(np.float32)))
    ours = np.asarray(fewshot.probabilities('lr_balanced', support, labels, query, ways=len(counts)))
    theirs = LogisticRegression(class_weight='balanced', tol=1e-10, max_iter=10_000).fit(support, labels)
    np.testing.assert_allclose(ours, theirs.predict_proba(query), atol=2e-4)


def test_with_equal_supports_the_balanced_regression_is_the_plain_one():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4, dtype=np.int32), 3)
    support, query = (rng.normal(size=(n, 8)).astype(np.float32) for n in (12, 20))
    plain, balanced = (
        np.asarray(fewshot.probabilities(name, support, labels, query, ways=4)) for name in ('lr', 'lr_balanced')
    )
    np.testing.assert_array_equal(balanced, plain)


def test_five_supports_of_one_class_do_not_take_the_others_queries():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(4, 32)) * 0.6
    labels = np.repeat(np.arange(4, dtype=np.int32), (5, 1, 1, 1))
    truth = np.repeat(np.arange(4), 50)
    draw = lambda classes: np.asarray(  # noqa: E731
        fewshot.normalize((centres[classes] + rng.normal(size=(len(classes), 32))).astype(np.float32))
    )
    support, query = draw(labels), draw(truth)
    share = {
        name: np.mean(np.asarray(fewshot.classify(name, support, labels, query, ways=4)) == 0)
        for name in ('lr', 'lr_balanced', 'prototype')
    }
    assert share['lr'] > 0.8
    assert share['lr_balanced'] < 0.5
    assert share['prototype'] < 0.5


def test_methods_without_probabilities_are_refused():
    with pytest.raises(ValueError, match="'cosine' gives no probabilities: use one of lr, lr_balanced, prototype"):
        fewshot.probabilities('cosine', np.ones((2, 3)), np.array([0, 1]), np.ones((1, 3)), ways=2)


def test_episodes_that_do_not_fill_the_last_chunk_need_no_second_eigh() -> None:
    """Two batched `eigh` at once can occupy all threads of a CPU, each waiting for a task of its own."""
    support, labels, query, _ = features(0, ways=5, copies=5, queries=15, dim=64)
    episodes = classifiers._MAX_CHUNK + 1
    many = classifiers.prepare(np.stack([support] * episodes), labels, np.stack([query] * episodes), 5)
    program = str(jax.make_jaxpr(lambda task: classifiers._solve_in_chunks('lr', task, 5, classifiers._argmax))(many))
    assert program.count('= eigh[') == 1

"""What is done with a trained network: evaluated alone and with another, probed, asked about images, told as text."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ancor_jax import config, data
from ancor_jax.commands import classify, compare, embed
from ancor_jax.commands import evaluate as evaluate_command
from ancor_jax.commands import report as report_command
from ancor_jax.config import ConfigError
from ancor_jax.data import DataError
from ancor_jax.evaluation import evaluate, results, trained_model
from ancor_jax.runtime import checkpoint
from tests.helpers import small, untrained

PROBES = ('linear', 'knn', 'retrieval', 'clustering', 'coarse')


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """Two work directories: an ANCOR run, whose network has all outputs, and one without classes."""
    root = tmp_path_factory.mktemp('runs')
    return untrained(root / 'one', 'ancor', 0), untrained(root / 'two', 'moco', 1)


def test_a_run_is_evaluated_and_probed(places, capsys):
    directory, _ = places
    settings = small(eval__probes=PROBES)
    evaluation = evaluate_command.evaluate_run(settings, directory)
    stored = json.loads((directory / 'evaluation.json').read_text())
    assert stored['step'] == 7
    assert [len(row['accuracies']) for row in stored['results']] == [20, 20, 20]
    assert {(row['probe'], row['measure']): row['value'] for row in stored['probes']} == {
        (score.probe, score.measure): score.value for score in evaluation.scores
    }
    by_name = {(score.probe, score.measure): score for score in evaluation.scores}
    assert {probe for probe, _ in by_name} == set(PROBES)
    # An untrained convolutional network still tells digits apart far above chance, 10 %.
    for name in [('linear', 'fine accuracy'), ('knn', 'fine accuracy'), ('retrieval', 'recall@1')]:
        assert 40 < by_name[name].value < 100
        assert 0 < by_name[name].interval < 10
    assert by_name['retrieval', 'recall@1'].value < by_name['retrieval', 'recall@10'].value
    assert by_name['clustering', 'accuracy'].interval is None
    # The class logits are what the stored weights give.
    network = trained_model.load(directory)
    dataset = data.load(settings.data)
    outputs = network.extractor(settings.eval).of_images(network.variables, dataset.test.images)
    right = np.asarray(outputs.class_logits).argmax(axis=1) == dataset.test.coarse
    np.testing.assert_allclose(by_name['coarse', 'coarse accuracy'].value, 100 * right.mean())
    printed = capsys.readouterr().out
    assert 'ANCOR, step 7 on digits' in printed
    assert '| linear probe ' in printed


def test_fine_classes_that_training_has_not_cannot_be_learnt():
    settings = small(eval__probes=('linear',))
    dataset = data.load(settings.data)
    seen = dataset.train.take(np.flatnonzero(dataset.train.fine != 3))
    with pytest.raises(ConfigError, match="'linear', which learns .* digits are without 'three'"):
        evaluate.check(data.Dataset('digits', seen, dataset.test, *list(vars(dataset).values())[3:]), settings)
    evaluate.check(dataset, settings)


def test_two_networks_together(places, tmp_path):
    one, two = map(str, places)
    changes = {'eval__classifiers': ('lr', 'cosine'), 'eval__protocols': ('nway',)}
    settings = small(eval__models=(one, two), **changes)
    joined = evaluate_command.evaluate_joined_runs(settings, tmp_path / 'both')
    assert [len(evaluation.results) for evaluation in joined.values()] == [1, 2, 2]
    # The same by the network beside itself: neither probabilities nor distances change.
    same = small(eval__models=(one, one), eval__join=('ensemble', 'concat'), **changes)
    itself = evaluate_command.evaluate_joined_runs(same, tmp_path / 'itself')
    alone = evaluate_command.evaluate_run(small(**changes), places[0]).results
    accuracies = {(row.protocol, row.classifier): row.accuracies for row in alone}
    for row in itself['ensemble'].results:
        np.testing.assert_allclose(row.accuracies, accuracies[row.protocol, 'lr'], atol=0.03)
    for row in itself['concat'].results[1::2]:
        np.testing.assert_allclose(row.accuracies, accuracies[row.protocol, 'cosine'], atol=0.03)
    # Comparable with each other, episode by episode.
    text = compare.compare([tmp_path / 'both' / 'ensemble', tmp_path / 'both' / 'cascade'], tmp_path / 'out')
    assert 'Difference to ensemble' in text
    with pytest.raises(ConfigError, match='a cascade asks the first model for coarse classes, and .*two was trained'):
        evaluate_command.evaluate_joined_runs(small(eval__models=(two, one)), tmp_path / 'wrong')
    assert not (tmp_path / 'wrong').exists()


def test_what_is_not_there(tmp_path, places):
    with pytest.raises(ConfigError, match='No run is stored in .*; train first'):
        evaluate_command.evaluate_run(small(), tmp_path)
    with pytest.raises(ConfigError, match='eval.models takes two work directories, and has 1'):
        config.check(small(eval__models=('one',)))
    with pytest.raises(checkpoint.CheckpointError, match='No best checkpoint .* eval.every_epochs above 0'):
        trained_model.load(places[0], checkpoint.BEST)
    with pytest.raises(ConfigError, match='holds a run with model.width=0.125, and this command has 0.25'):
        evaluate_command.evaluate_run(small(model__width=0.25), places[0])


def test_embeddings_of_a_data_set(places):
    directory, without_classes = places
    train_file, test_file = embed.embed(small(), directory)
    assert (train_file.name, test_file.name) == ('train.npz', 'test.npz')
    dataset = data.load(small().data)
    with np.load(test_file) as archive:
        np.testing.assert_array_equal(archive['fine'], dataset.test.fine)
        assert list(archive['fine_names']) == list(dataset.fine_names)
        np.testing.assert_allclose(np.linalg.norm(archive['features'], axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(archive['class_probabilities'].sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(archive['predicted'], archive['class_probabilities'].argmax(axis=1))
        assert list(archive['class_names']) == list(dataset.coarse_names)
        assert archive['embeddings'].shape == (len(dataset.test), 128)
    with np.load(embed.embed(small(), without_classes)[1]) as archive:
        assert 'predicted' not in archive


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """support/<digit>/*.png with three images each and query/<digit>/*.png with ten, of various sizes."""
    root = tmp_path_factory.mktemp('pictures')
    dataset = data.load(small().data)
    rng = np.random.default_rng(0)
    for colour, digit in enumerate((0, 4, 6)):  # in red, green and blue: an untrained network sees that
        name = dataset.fine_names[digit]
        images = dataset.test.images[np.flatnonzero(dataset.test.fine == digit)[:13]]
        for number, image in enumerate(images):
            folder = root / ('support' if number < 3 else 'query') / name
            folder.mkdir(parents=True, exist_ok=True)
            size = (int(rng.integers(16, 40)),) * 2
            image = np.where(np.arange(3) == colour, image, 0).astype(np.uint8)
            Image.fromarray(image).resize(size, Image.Resampling.BILINEAR).save(folder / f'{number}.png')
    return root


@pytest.mark.parametrize('classifier', ['lr', 'cosine'])
def test_ones_own_images_are_sorted(places, pictures, classifier, capsys):
    settings = small(eval__classifiers=(classifier,))
    answer = classify.classify(settings, places[0], pictures / 'support', pictures / 'query')
    assert answer.accuracy[1] == 30
    assert answer.accuracy[0] > 0.9  # a third by chance
    out = places[0] / 'classification' / classify.output_name(pictures / 'support', pictures / 'query')
    with (out / 'classification.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['class'] for row in rows] == [answer.classes[number] for number in answer.predicted]
    assert all(row['path'].endswith('.png') for row in rows)
    if classifier == 'lr':
        assert all(float(row['probability']) >= float(row['second_probability']) > 0 for row in rows)
        assert all(row['second'] != row['class'] for row in rows)
    page = (out / 'classification.html').read_text()
    assert page.count('<img') == 30 + 9
    assert 'http:' not in page
    assert 'https:' not in page
    assert 'are right' in capsys.readouterr().out
    assert {row['coarse'] for row in rows} <= {'round', 'straight', 'curved'}
    assert all(row['right'] == ('yes' if row['truth'] == row['class'] else 'no') for row in rows)


def test_unreadable_queries_are_listed_and_improbable_answers_are_unknown(places, pictures, tmp_path):
    query = tmp_path / 'query'
    query.mkdir()
    (query / 'good.png').write_bytes((pictures / 'query' / 'zero' / '3.png').read_bytes())
    (query / '=broken.png').write_bytes(b'nothing')
    settings = small(eval__unknown_below=1.0, eval__classifiers=('lr',))
    answer = classify.classify(settings, places[0], pictures / 'support', query)
    assert answer.names == ['unknown']
    assert answer.accuracy is None
    out = places[0] / 'classification' / classify.output_name(pictures / 'support', query)
    with (out / 'classification.csv').open() as file:
        good, bad = csv.DictReader(file)
    assert good['error'] == ''
    assert 'cannot be read' in bad['error']
    assert '1 images cannot be read' in (out / 'classification.html').read_text()


def test_probabilities_are_calibrated_and_the_page_has_the_confusion_matrix(places, pictures, capsys):
    settings = small(eval__classifiers=('lr',), eval__support_copies=2)
    answer = classify.classify(settings, places[0], pictures / 'support', pictures / 'query')
    assert answer.temperature.images == 9  # all support images were left out in turn
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert 'calibrated on the 9 support images' in capsys.readouterr().out
    out = places[0] / 'classification' / classify.output_name(pictures / 'support', pictures / 'query')
    page = (out / 'classification.html').read_text()
    right = sum(truth == name for truth, name in zip(answer.truth, answer.names, strict=True))
    assert page.count('<figure class="right">') == right
    assert page.count('<figure class="wrong">') == 30 - right
    for truth, row in answer.confusion():
        assert f'<th scope="row">{truth}</th>' in page
        assert sum(row.values()) == 10
    rows = answer.confusion()
    printed = classify.summary(answer).splitlines()
    assert [line.split()[0] for line in printed[-3:]] == [truth for truth, _ in rows]
    assert [int(cell) for cell in printed[-3].split()[1:]] == [rows[0][1].get(name, 0) for name in answer.classes]


def test_unknown_needs_probabilities_and_a_name_of_its_own(places, pictures, tmp_path):
    with pytest.raises(ConfigError, match=r"the classifier 'cosine' gives none; set .*lr, lr_balanced, prototype"):
        classify.classify(small(eval__unknown_below=0.5), places[0], pictures / 'support', pictures / 'query')
    for name in ('zero', 'unknown'):
        shutil.copytree(pictures / 'support' / 'zero', tmp_path / name)
    with pytest.raises(DataError, match="'unknown' is the answer for images of no class; rename the folder"):
        classify.classify(small(), places[0], tmp_path, pictures / 'query')


def test_no_output_replaces_that_of_other_images(places, pictures, tmp_path):
    for day in ('day1', 'day2'):
        shutil.copytree(pictures / 'query' / 'zero', tmp_path / day / 'train')
    directory = shutil.copytree(places[0], tmp_path / 'run')
    written = [embed.embed(small(), directory, tmp_path / day / 'train') for day in ('day1', 'day2')]
    written += [embed.embed(small(), directory), embed.embed(small(data__train_images=100), directory)]
    paths = [path for some in written for path in some]
    assert len(set(paths)) == len(paths) == 6
    assert embed.embed(small(), directory)[0] == directory / 'embeddings' / 'train.npz'
    for day in ('day1', 'day2'):
        classify.classify(small(), directory, pictures / 'support', tmp_path / day / 'train')
    assert len(list((directory / 'classification').glob('train-*'))) == 2


def test_embeddings_of_a_folder(places, pictures):
    (path,) = embed.embed(small(), places[0], pictures / 'query')
    assert path.name == embed.output_name('query', os.fsencode(pictures / 'query')) + '.npz'
    with np.load(path) as archive:
        assert len(archive['features']) == len(archive['paths']) == 30
        assert 'coarse' not in archive


def test_folders_that_cannot_be_sorted(places, pictures, tmp_path):
    run = places[0]
    with pytest.raises(DataError, match='is not a folder'):
        classify.classify(small(), run, tmp_path / 'none', pictures / 'query')
    with pytest.raises(DataError, match='has 0 class folders'):
        classify.classify(small(), run, tmp_path, pictures / 'query')
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match='a holds no image'):
        classify.classify(small(), run, tmp_path, pictures / 'query')
    with pytest.raises(DataError, match=r'0\.png is in no class folder'):
        classify.classify(small(), run, pictures / 'query' / 'zero', pictures / 'query')
    (tmp_path / 'a' / 'broken.png').write_bytes(b'nothing')
    with pytest.raises(DataError, match=r'broken\.png cannot be read'):
        embed.embed(small(), run, tmp_path)


def test_table_is_markdown():
    rows = [
        results.Result('nway', 'lr', (5, 5), 1, 71.234, 0.456, np.zeros(1)),
        results.Result('nway', 'nn', (5, 5), 1, 60.0, 0.5, np.zeros(1)),
        results.Result('intra', 'lr', (3, 4), 1, 50.0, 0.1, np.zeros(1)),
    ]
    lines = results.table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].split('|')[1:4] == [
        ' 5-way 1-shot                 ',
        ' 71.23 ± 0.46        ',
        ' 60.00 ± 0.50        ',
    ]
    assert 'intra-class (3–4-way) 1-shot' in lines[3]


@pytest.fixture
def coarse_folder(tmp_path):
    """train/<coarse>/*.png and val/<coarse>/*.png of digits, without fine labels and in another order of classes."""
    dataset = data.load(small().data)
    for part, split, count in (('train', dataset.train, 12), ('val', dataset.test, 8)):
        for number, name in enumerate(dataset.coarse_names):
            folder = tmp_path / 'data' / part / name
            folder.mkdir(parents=True)
            for index in np.flatnonzero(split.coarse == number)[:count]:
                Image.fromarray(split.images[index]).save(folder / f'{index}.png')
    return small(data__name='folder', data__dir=str(tmp_path / 'data'), data__train_images=0)


def test_without_fine_labels_coarse_classes_are_evaluated_reported_and_embedded(
    places, coarse_folder, tmp_path, capsys
):
    directory = shutil.copytree(places[0], tmp_path / 'run')
    evaluation = evaluate_command.evaluate_run(coarse_folder, directory)
    assert evaluation.results == []
    measures = {(score.probe, score.measure): score.value for score in evaluation.scores}
    assert set(measures) == {('coarse', 'coarse accuracy'), ('neighbours', 'coarse agreement')}
    printed = capsys.readouterr().out
    assert 'There are no few-shot episodes: they need test images with fine labels' in printed
    # The classes of the folder are in alphabetical order, those of the run are not: they are matched by name.
    dataset = data.load(coarse_folder.data)
    network = trained_model.load(directory)
    assert dataset.coarse_names == ('curved', 'round', 'straight')
    assert network.class_names == ('round', 'straight', 'curved')
    outputs = network.extractor(coarse_folder.eval).of_images(network.variables, dataset.test.images)
    answers = [network.class_names[index] for index in np.asarray(outputs.class_logits).argmax(axis=1)]
    right = np.mean([dataset.coarse_names[c] == name for c, name in zip(dataset.test.coarse, answers, strict=True)])
    np.testing.assert_allclose(measures['coarse', 'coarse accuracy'], 100 * right)

    page = report_command.report_run(coarse_folder, directory).read_text(encoding='utf-8')
    assert f'has the right coarse class for {100 * right:.1f} % of the test images' in page
    with np.load(embed.embed(coarse_folder, directory)[1]) as archive:
        assert 'fine' not in archive
        assert len(archive['features']) == 24


def test_without_test_images_the_report_is_of_training_images_and_an_evaluation_is_refused(
    places, coarse_folder, tmp_path
):
    shutil.rmtree(tmp_path / 'data' / 'val')
    directory = shutil.copytree(places[0], tmp_path / 'run')
    with pytest.raises(ConfigError, match='has no test images, and evaluation is of images that training has not seen'):
        evaluate_command.evaluate_run(coarse_folder, directory)
    page = report_command.report_run(coarse_folder, directory).read_text(encoding='utf-8')
    assert '36 training images' in page

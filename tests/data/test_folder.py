"""Users' own folders and manifests: every layout that is taken, and a sentence for everything that is wrong."""

import csv
import json
import os
import pathlib
import unicodedata
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ancor_jax import config as configuration
from ancor_jax import data
from ancor_jax.config import Config, ConfigError, Data
from ancor_jax.data import DataError, Dataset
from ancor_jax.data.dataset import UNKNOWN
from ancor_jax.data.sources import folder
from configs import folder_coarse

ANIMALS = ('cat/siamese', 'cat/tabby', 'dog/collie', 'dog/pug')


def write(path: pathlib.Path, color: tuple[int, int, int] = (10, 20, 30)) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (6, 4), color).save(path)
    return path


def make(root: pathlib.Path, split: str, classes: tuple[str, ...] = ANIMALS, count: int = 2) -> None:
    for number, name in enumerate(classes):
        for index in range(count):
            write(root / split / name / f'{index}.png', (number, index, 0))


def load(root: pathlib.Path | str = '', **fields: Any) -> Dataset:
    return folder.load(Data(name='folder', dir=str(root), **fields))


def refused(root: pathlib.Path | str, match: str, **fields: Any) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load(root, **fields)
    assert '\n' not in str(caught.value)


# --- folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('test', ['val', 'test'])
def test_coarse_and_fine_folders(tmp_path, test):
    make(tmp_path, 'train')
    make(tmp_path, test, count=1)
    dataset = load(tmp_path)
    assert dataset.coarse_names == ('cat', 'dog')
    assert dataset.fine_names == ('collie', 'pug', 'siamese', 'tabby')
    np.testing.assert_array_equal(dataset.coarse_of_fine, [1, 1, 0, 0])
    np.testing.assert_array_equal(dataset.train.coarse, [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(dataset.train.fine, [2, 2, 3, 3, 0, 0, 1, 1])
    np.testing.assert_array_equal(dataset.test.fine, [2, 3, 0, 1])
    for index in range(8):  # the right pixels to the labels
        assert dataset.train.images[index][0, 0].tolist() == [index // 2, index % 2, 0]
    assert dataset.test.images.where(2) == str(tmp_path / test / 'dog' / 'collie' / '0.png')


def test_the_named_split_goes_before_val(tmp_path):
    for split, count in (('train', 1), ('val', 2), ('test', 3), ('held_out', 4), ('more', 5)):
        make(tmp_path, split, count=count)
    assert len(load(tmp_path).test) == 12
    assert len(load(tmp_path, test_split='val').test) == 8
    other = load(tmp_path, train_split='more', test_split='held_out')
    assert (len(other.train), len(other.test)) == (20, 16)
    refused(tmp_path, 'no folder holdout/; .*--config.data.test_split=NAME', test_split='holdout')


def test_coarse_labels_alone(tmp_path):
    make(tmp_path, 'train', ('cat', 'dog'))
    dataset = load(tmp_path)
    assert dataset.fine_names == ()
    assert len(dataset.test) == 0
    np.testing.assert_array_equal(dataset.train.fine, [UNKNOWN] * 4)
    np.testing.assert_array_equal(dataset.train.coarse, [0, 0, 1, 1])
    assert 'fine classes unknown' in dataset.summary()
    make(tmp_path, 'val', ('cat', 'dog'), count=1)
    assert not load(tmp_path).test.has_fine


def test_each_split_decides_for_itself(tmp_path):
    make(tmp_path, 'train', ('cat', 'dog'))
    make(tmp_path, 'val', count=3)
    dataset = load(tmp_path)
    assert not dataset.train.has_fine
    assert dataset.test.has_fine
    np.testing.assert_array_equal(dataset.coarse_of_fine, [1, 1, 0, 0])
    assert 'known of the test images alone' in dataset.summary()


def test_classes_of_the_training_images_come_first(tmp_path):
    make(tmp_path, 'train', ('m/x', 'z/y'))
    make(tmp_path, 'val', ('a/b', 'm/x', 'm/n', 'p/q'))
    dataset = load(tmp_path)
    assert dataset.coarse_names == ('m', 'z', 'a', 'p')
    assert dataset.fine_names == ('x', 'y', 'b', 'n', 'q')
    np.testing.assert_array_equal(dataset.coarse_of_fine, [0, 1, 2, 0, 3])


def test_extensions_and_what_is_passed_over(tmp_path, capsys):
    make(tmp_path, 'train', ('cat', 'dog'), count=1)
    cat = tmp_path / 'train' / 'cat'
    capsys.readouterr()
    for name in ('a.JPG', 'b.jpeg', 'c.PNG', 'd.webp', 'e.bmp', 'f.GIF', 'g.tif', 'h.TIFF'):
        (cat / name).touch()
    for name in ('.DS_Store', '._a.jpg', 'Thumbs.db', 'desktop.ini'):
        (cat / name).touch()
    (tmp_path / '.cache').mkdir()
    (tmp_path / 'train' / '__MACOSX' / 'cat').mkdir(parents=True)
    (cat / '@eaDir').mkdir()
    assert len(load(tmp_path).train) == 10
    assert capsys.readouterr().err == ''
    for name in ('list.txt', 'x.npy'):
        (cat / name).touch()
    (tmp_path / 'train' / 'README').touch()
    assert len(load(tmp_path).train) == 10
    assert capsys.readouterr().err == (
        f'{tmp_path}/train: 3 files passed over, not images by their extension, for example {tmp_path}/train/README\n'
    )


def test_symbolic_links_are_followed(tmp_path):
    make(tmp_path / 'there', 'dogs', ('pug', 'collie'))
    make(tmp_path / 'root', 'train', ('cat/tabby',))
    make(tmp_path / 'root', 'val', ('cat/tabby', 'dog/pug'), count=1)
    os.symlink(tmp_path / 'there' / 'dogs', tmp_path / 'root' / 'train' / 'dog')
    os.symlink(write(tmp_path / 'elsewhere.png', (9, 9, 9)), tmp_path / 'root' / 'train' / 'cat' / 'tabby' / 'z.png')
    dataset = load(tmp_path / 'root')
    assert dataset.fine_names == ('collie', 'pug', 'tabby')
    assert dataset.train.images[2][0, 0].tolist() == [9, 9, 9]


def test_names_in_composed_and_decomposed_form_are_one_class(tmp_path):
    name = 'Bärenfänger'
    make(tmp_path, 'train', ('cat', unicodedata.normalize('NFD', name)))
    make(tmp_path, 'val', ('cat', unicodedata.normalize('NFC', name)))
    dataset = load(tmp_path)
    assert dataset.coarse_names == (unicodedata.normalize('NFC', name), 'cat')
    assert dataset.train.images[0].shape == (4, 6, 3)  # found under the name that it has


def test_an_empty_class_folder_in_one_split_is_no_matter(tmp_path):
    make(tmp_path, 'train')
    make(tmp_path, 'val', ANIMALS[:3])
    (tmp_path / 'val' / 'dog' / 'pug').mkdir()
    assert len(load(tmp_path).fine_names) == 4
    (tmp_path / 'val' / 'dog' / 'poodle').mkdir()
    refused(tmp_path, 'val/dog/poodle holds no image')
    (tmp_path / 'val' / 'dog' / 'poodle').rmdir()
    (tmp_path / 'train' / 'fish').mkdir()
    refused(tmp_path, 'train/fish holds no image .*add images or remove')


def test_what_is_wrong_with_folders_is_said(tmp_path):
    refused('', '--config.data.dir=ROOT')
    refused(tmp_path / 'nowhere', 'nowhere is not a folder')
    refused(write(tmp_path / 'file.png'), 'file.png is not a folder')
    empty = tmp_path / 'empty'
    empty.mkdir()
    refused(empty, r'empty has no folder train/ \(it has no folders\)')
    make(tmp_path / 'above', 'inside/train')
    refused(tmp_path / 'above', r'no folder train/ \(it has inside/\); .*/inside has one: --config.data.dir=.*/inside')
    make(tmp_path / 'half', 'val')
    refused(tmp_path / 'half', r'no folder train/ \(it has val/\); put .* --config.data.train_split=NAME')
    (empty / 'train').mkdir()
    refused(empty, 'train holds no class folders')
    write(empty / 'train' / 'a.png')
    refused(empty, r'train/a.png is in no class folder; move it')


def test_one_coarse_class_is_refused(tmp_path):
    make(tmp_path, 'train', ('cat/tabby', 'cat/siamese'))
    make(tmp_path, 'val')
    refused(tmp_path, r"training images have 1 coarse class \('cat'\); give images of at least two")


def test_wrong_nesting_is_refused(tmp_path):
    make(tmp_path, 'train')
    make(tmp_path, 'val')
    stray = write(tmp_path / 'train' / 'cat' / 'a.png')
    refused(tmp_path, r'train/cat holds both images \(a.png\) and folders \(siamese/\)')
    stray.unlink()
    write(tmp_path / 'val' / 'dog' / 'pug' / 'more' / 'a.png')
    refused(tmp_path, 'val/dog/pug/more/ is too deep; .*one level up')


def test_fine_classes_need_test_images(tmp_path):
    make(tmp_path, 'train')
    refused(tmp_path, r'no test images to tell apart; move a part .* to .*/val/COARSE/FINE/')
    for name in ANIMALS:
        (tmp_path / 'val' / name).mkdir(parents=True)
    refused(tmp_path, 'no test images to tell apart')


def test_a_fine_class_in_two_coarse_classes_is_refused(tmp_path):
    make(tmp_path, 'train', ('cat/tabby', 'cat/other', 'dog/pug', 'dog/other'))
    make(tmp_path, 'val')
    refused(tmp_path, "fine class 'other' occurs in two coarse classes, 'cat' and 'dog'")


def test_a_fine_class_that_changes_its_coarse_class_is_refused(tmp_path):
    make(tmp_path, 'train')
    make(tmp_path, 'val', ('cat/siamese', 'cat/pug'))
    refused(tmp_path, "fine class 'pug' occurs in two coarse classes, 'cat' and 'dog'")


def test_test_images_with_and_without_fine_class_are_refused(tmp_path):
    make(tmp_path, 'train')
    make(tmp_path, 'val', ('cat', 'dog/pug'))
    refused(tmp_path, r"val/cat/0.png \(coarse class 'cat'\) has no fine class and other test images have")


# --- splits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['valid', 'validation', 'Testing', 'VAL'])
def test_other_names_of_the_test_folder_are_taken_and_told(tmp_path, name):
    make(tmp_path, 'train')
    make(tmp_path, name, count=1)
    dataset = load(tmp_path)
    assert len(dataset.test) == 4
    assert f'The test images are those of {tmp_path}/{name}/.' in dataset.summary()


def test_folders_that_look_like_a_split_and_are_not_used_are_named(tmp_path):
    for split in ('train', 'test', 'valid'):
        make(tmp_path, split)
    told = load(tmp_path).summary()
    assert f'{tmp_path}/valid/ looks like a split and is not used; --config.data.test_split=valid takes it' in told
    assert 'looks like' in load(tmp_path, test_split='valid').summary()  # test/ is unused then
    assert 'looks like' not in load(tmp_path, train_split='test', test_split='valid').notes


def test_training_folders_in_other_letters(tmp_path):
    make(tmp_path, 'Train')
    make(tmp_path, 'Test', count=1)
    assert (len(load(tmp_path).train), len(load(tmp_path).test)) == (8, 4)


@pytest.mark.parametrize('fine', [True, False])
def test_folders_without_splits_are_split_by_class(tmp_path, fine):
    make(tmp_path, '', ANIMALS if fine else ('cat', 'dog'), count=10)
    dataset = load(tmp_path, test_part=0.3)
    labels = 'fine' if fine else 'coarse'
    classes = 4 if fine else 2
    assert np.bincount(getattr(dataset.train, labels)).tolist() == [7] * classes
    assert np.bincount(getattr(dataset.test, labels)).tolist() == [3] * classes
    assert dataset.test.has_fine == fine
    count = 12 if fine else 6
    assert f'has no split folders: {count} of {10 * classes} images, 30% of each class' in dataset.summary()
    places = [{split.images.where(i) for i in range(len(split))} for split in (dataset.train, dataset.test)]
    assert not places[0] & places[1]
    again, other = load(tmp_path, test_part=0.3), load(tmp_path, test_part=0.3, split_seed=1)
    assert {again.test.images.where(i) for i in range(count)} == places[1]
    assert {other.test.images.where(i) for i in range(count)} != places[1]


def test_the_drawn_split_is_recorded_as_a_manifest_that_gives_it_again(tmp_path):
    make(tmp_path / 'data', '', count=5)
    drawn = load(tmp_path / 'data')
    (tmp_path / 'split.jsonl').write_text(drawn.record)
    read = load(tmp_path / 'data', manifest=str(tmp_path / 'split.jsonl'))
    for one, other in ((drawn.train, read.train), (drawn.test, read.test)):
        np.testing.assert_array_equal(one.fine, other.fine)
        assert [one.images.where(i) for i in range(len(one))] == [other.images.where(i) for i in range(len(other))]
    assert read.record == ''


def test_further_images_move_few_others_to_the_other_split(tmp_path):
    make(tmp_path, '', ('cat', 'dog'), count=100)
    before = {line for line in load(tmp_path).record.splitlines() if '"test"' in line}
    for index in range(100, 104):
        write(tmp_path / 'cat' / f'{index}.png')
    after = {line for line in load(tmp_path).record.splitlines() if '"test"' in line}
    assert len(before) == 50
    assert len(before - after) <= 4


def test_a_class_of_one_image_is_trained_on(tmp_path):
    make(tmp_path, '', ('cat', 'dog'), count=3)
    write(tmp_path / 'fish' / 'a.png')
    dataset = load(tmp_path, test_part=0.01)
    assert np.bincount(dataset.train.coarse).tolist() == [2, 2, 1]
    assert np.bincount(dataset.test.coarse).tolist() == [1, 1]


# --- names ----------------------------------------------------------------------------------------------


def test_names_in_other_bytes_than_utf_8(tmp_path):
    make(tmp_path, 'train', ('cat', 'dog'))
    make(tmp_path, 'val', ('cat', 'dog'))
    root = os.fsencode(tmp_path)
    for split in (b'train', b'val'):
        os.rename(root + b'/' + split + b'/cat', root + b'/' + split + b'/caf\xe9')
        os.rename(root + b'/' + split + b'/dog/0.png', root + b'/' + split + b'/dog/\xfc\n.png')
    dataset = load(tmp_path)
    assert dataset.coarse_names == ('caf\\xe9', 'dog')
    places = [dataset.train.images.where(index) for index in range(4)]
    assert places[0] == f'{tmp_path}/train/caf\\xe9/0.png'
    assert places[3] == f'{tmp_path}/train/dog/\\xfc\\n.png'
    json.dumps([places, dataset.coarse_names], ensure_ascii=False).encode()
    assert dataset.train.images[0].shape == dataset.train.images[3].shape == (4, 6, 3)
    (tmp_path / 'train' / os.fsdecode(b'caf\xe9') / '0.png').write_bytes(b'')
    with pytest.raises(DataError, match=r'train/caf\\xe9/0.png cannot be read \(the file is empty\)') as caught:
        dataset.train.images[0]
    str(caught.value).encode()


def test_folders_of_one_name_in_two_unicode_forms_are_told(tmp_path):
    name = 'Bärenfänger'
    make(tmp_path, 'train', ('cat', unicodedata.normalize('NFD', name), name))
    assert f"2 folders have the name '{name}' in different Unicode forms" in load(tmp_path).summary()


def test_through_the_interface_images_come_to_one_size(tmp_path):
    make(tmp_path, 'train')
    make(tmp_path, 'val')
    dataset = data.load(Data(name='folder', dir=str(tmp_path), image_size=4, pipeline='device'))
    assert dataset.train.array.shape == (8, 4, 4, 3)
    assert dataset.train.array[5].tolist() == np.full((4, 4, 3), (2, 1, 0)).tolist()


# --- manifests ------------------------------------------------------------------------------------------


def manifest(path: pathlib.Path, rows: list[dict[str, object]]) -> str:
    with open(path, 'w', encoding='utf-8', newline='') as file:
        if path.suffix == '.jsonl':
            file.write('\n'.join(json.dumps(row) for row in rows) + '\n\n')
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def rows(root: pathlib.Path) -> list[dict[str, object]]:
    """Images lie in `root`; the first has an absolute path."""
    found: list[dict[str, object]] = []
    for number, (split, name) in enumerate((split, name) for split in ('train', 'val', 'test') for name in ANIMALS):
        path = write(root / 'pictures, all' / f'{number}.png', (number, 0, 0))
        coarse, fine = name.split('/')
        found.append({'path': str(path.relative_to(root)), 'coarse': coarse, 'fine': fine, 'split': split})
    found[0]['path'] = str(root / str(found[0]['path']))
    return found


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_manifests(tmp_path, kind):
    lines = rows(tmp_path)
    dataset = load(manifest=manifest(tmp_path / f'list.{kind}', lines))
    assert dataset.coarse_names == ('cat', 'dog')
    assert dataset.fine_names == ('collie', 'pug', 'siamese', 'tabby')
    np.testing.assert_array_equal(dataset.train.fine, [2, 3, 0, 1])
    np.testing.assert_array_equal(dataset.test.fine, [2, 3, 0, 1] * 2)  # val and test
    np.testing.assert_array_equal(dataset.coarse_of_fine, [1, 1, 0, 0])
    assert [int(dataset.test.images[index][0, 0, 0]) for index in range(8)] == list(range(4, 12))
    # The manifest elsewhere: paths start from dir.
    (tmp_path / 'lists').mkdir()
    path = manifest(tmp_path / 'lists' / f'list.{kind}', lines)
    assert len(load(tmp_path, manifest=path).test) == 8
    line = {'csv': 3, 'jsonl': 2}[kind]
    lines[0]['path'] = lines[1]['path']
    path = manifest(tmp_path / 'lists' / f'list.{kind}', lines)
    refused('', rf'line {line - 1}: .*/lists/pictures, all/1.png is not there \(nor are 11 more\)', manifest=path)


@pytest.mark.parametrize('outside', ['/{root}/else.png', '../else.png', 'lists/../../else.png'])
def test_a_manifest_names_images_below_its_root_unless_others_are_allowed(tmp_path, outside):
    write(tmp_path / 'else.png')
    write(tmp_path / 'in' / 'a.png')
    named = outside.format(root=str(tmp_path).lstrip('/'))
    listed = [{'path': 'a.png', 'coarse': 'cat'}, {'path': named, 'coarse': 'dog'}]
    path = manifest(tmp_path / 'in' / 'list.csv', listed)
    refused('', r'line 3: .*else.png is not below .*/in; .* --config.data.manifest_outside=True', manifest=path)
    (tmp_path / 'in' / 'lists').mkdir()
    assert len(load(manifest=path, manifest_outside=True).train) == 2


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_fine_and_split_may_be_left_out(tmp_path, kind):
    lines = rows(tmp_path)
    short = [{'path': row['path'], 'coarse': row['coarse']} for row in lines[:4]]
    dataset = load(manifest=manifest(tmp_path / f'short.{kind}', short))
    assert dataset.fine_names == ()
    assert (len(dataset.train), len(dataset.test)) == (4, 0)
    for row in lines[:4]:
        row['fine'], row['split'] = '', ''
    dataset = load(manifest=manifest(tmp_path / f'list.{kind}', lines))
    np.testing.assert_array_equal(dataset.train.fine, [UNKNOWN] * 4)
    assert dataset.test.has_fine


def test_labels_are_names(tmp_path):
    lines = rows(tmp_path)
    for row in lines:
        row['coarse'] = int(row['coarse'] == 'dog')
        row['fine'] = ANIMALS.index(f'{["cat", "dog"][row["coarse"]]}/{row["fine"]}')
    for kind in ('csv', 'jsonl'):
        dataset = load(manifest=manifest(tmp_path / f'list.{kind}', lines))
        assert dataset.coarse_names == ('0', '1')
        np.testing.assert_array_equal(dataset.train.fine, [0, 1, 2, 3])


def test_csv_as_spreadsheets_write_it(tmp_path):
    for name in 'ab':
        write(tmp_path / f'{name}.png')
    path = tmp_path / 'list.CSV'
    text = '\ufeffID,Path , Coarse\r\n1,a.png, cat \r\n,,\r\n\r\n2,b.png,"dog, big"\r\n'
    path.write_bytes(text.encode())
    dataset = load(manifest=str(path))
    assert dataset.coarse_names == ('cat', 'dog, big')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'file,coarse\na.png,cat\n',
            "line 1: there is no 'path', only file, coarse; a manifest has path, coarse, fine",
        ),
        ('path;coarse\na.png;cat\n', "line 1: there is no 'path', only path;coarse"),
        ('path,coarse,split\na.png,cat,train\nb.png,dog,dev\n', "line 3: unknown split 'dev'; give train, val or test"),
        ('path,coarse\na.png,cat\nb.png,\n', 'line 3: coarse is empty; fill it in or remove the line'),
        ('path,coarse\n,cat\n', 'line 2: path is empty'),
        ('path,coarse,fine\na.png,cat\n', 'line 2: 2 columns where the header has 3'),
        ('path,coarse\na.png,cat,dog\n', 'line 2: 3 columns where the header has 2'),
        ('path,coarse\na.png,cat\nc.png,dog\n', 'line 3: .*/c.png is not there; correct the path'),
        ('path,coarse\na.png,cat\n.,dog\n', r'line 3: .*/\. is not there'),
        ('path,coarse\na.png,cat\nb.png,cat\n', r"training images have 1 coarse class \('cat'\)"),
        ('path,coarse,split\na.png,cat,val\nb.png,dog,val\n', 'no training images; add lines whose split is train'),
        ('', 'no training images'),
        ('path,coarse,fine\na.png,cat,x\nb.png,dog,y\n', 'no test images to tell apart; set the split of a part'),
        (
            'path,coarse,fine,split\na.png,cat,x,\nb.png,dog,x,\na.png,cat,x,val\n',
            "fine class 'x' occurs in two coarse classes, 'cat' and 'dog'",
        ),
        (
            'path,coarse,fine,split\na.png,cat,,\nb.png,dog,,\na.png,cat,x,val\nb.png,dog,,val\n',
            r"b.png \(coarse class 'dog'\) has no fine class and other test images have",
        ),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_said(tmp_path, text, message):
    for name in 'ab':
        write(tmp_path / f'{name}.png')
    path = tmp_path / 'list.csv'
    path.write_text(text)
    refused('', message, manifest=str(path))


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"path": "a.png", "coarse": "cat"', 'line 2: not valid JSON'),
        ('["a.png", "cat"]', 'line 2: not an object'),
        ('[' * 100_000, 'line 2: not valid JSON'),
        ('{"path": "a.png", "coarse": ' + '9' * 5000 + '}', 'line 2: not valid JSON'),
        ('{"path": "a.png", "label": "cat"}', "line 2: there is no 'coarse', only path"),
        ('{"path": "a.png", "coarse": ["cat"]}', r'line 2: coarse is \["cat"\]; give a name in quotes'),
        ('{"path": "a.png", "coarse": true}', 'line 2: coarse is true'),
        ('{"path": "a.png", "coarse": null}', 'line 2: coarse is empty'),
    ],
)
def test_what_is_wrong_with_json_lines_is_said(tmp_path, line, message):
    write(tmp_path / 'a.png')
    path = tmp_path / 'list.jsonl'
    path.write_text('{"path": "a.png", "coarse": "dog"}\n' + line + '\n')
    refused('', message, manifest=str(path))


def test_an_unreadable_manifest_is_named(tmp_path):
    refused('', r'manifest .*/none.csv cannot be read \(No such file', manifest=str(tmp_path / 'none.csv'))
    (tmp_path / 'list.csv').write_bytes('path,coarse\nä.png,cat\n'.encode('latin-1'))
    refused('', r'list.csv cannot be read \(it is not UTF-8 text\)', manifest=str(tmp_path / 'list.csv'))
    refused('', 'list.xlsx is neither .csv nor .jsonl', manifest=str(tmp_path / 'list.xlsx'))


# --- the configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize('variant', folder_coarse.VARIANTS)
def test_variants(variant):
    config = configuration.from_mapping(folder_coarse.get_config(variant))
    assert config == folder_coarse.experiment(variant)
    assert config.eval.crop == config.views.size


def test_an_unknown_variant_is_refused():
    assert isinstance(folder_coarse.experiment(), Config)
    with pytest.raises(ConfigError, match="photos, small, cpu, pretrained, and not 'large'"):
        folder_coarse.experiment('large')

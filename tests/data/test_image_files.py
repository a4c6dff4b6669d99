"""Which files are images, and folders that links lead back to."""

import os
import pathlib

import pytest

from ancor_jax.data import DataError, image_files, unlabelled


def test_one_rule_for_images(tmp_path):
    for name in ('a.JPG', 'b.jfif', 'c.tiff', '._d.jpg', '.e.png', 'Thumbs.db', 'f.txt', 'g.avif'):
        (tmp_path / name).touch()
    for name in ('@eaDir', '__MACOSX', '.git', 'inner'):
        (tmp_path / name).mkdir()
    assert image_files.contents(str(tmp_path)) == (['inner'], ['a.JPG', 'b.jfif', 'c.tiff', 'g.avif'], ['f.txt'])


def test_links_to_folders_above_and_to_themselves_end(tmp_path, capsys):
    (tmp_path / 'b' / 'c').mkdir(parents=True)
    for place in ('0.png', 'b/1.png', 'b/c/2.png'):
        (tmp_path / place).touch()
    os.symlink(tmp_path, tmp_path / 'again')
    os.symlink(tmp_path / 'b', tmp_path / 'b' / 'c' / 'up')
    os.symlink(tmp_path / 'b' / 'c', tmp_path / 'a')
    os.symlink(tmp_path / 'self.png', tmp_path / 'self.png')
    paths = unlabelled.images_below(tmp_path)
    assert [pathlib.Path(path).name for path in paths] == ['0.png', 'self.png', '1.png', '2.png']
    told = capsys.readouterr().err
    assert f'{tmp_path}/again leads to a folder that is listed already; it is passed over.' in told
    assert f'{tmp_path}/b/c/up leads' in told
    assert f'{tmp_path}/a leads' in told


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(DataError, match='the folder .*/gone cannot be listed'):
        image_files.contents(str(tmp_path / 'gone'))

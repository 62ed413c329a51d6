"""What a user writes means one thing, in a file and on the command line."""

import pytest

import minifork as mf
from experiments import study
from minifork import config as configs


@pytest.fixture
def file(tmp_path):
    """A function that writes a config file."""

    def write(text: str):
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "mine.yaml"

    return write


def test_the_paper_preset_has_the_published_kl():
    assert {configs.load_config(task, ["preset=paper"]).rl.kl_form for task in ("star", "sizes", "arith")} == {"k3"}


@pytest.mark.parametrize(
    ("text", "seed"),
    [("0777", 777), ("7", 7), ("+7", 7)]
    + [(text, None) for text in ("1:30", "0x10", "0b1", "1_000", "0o17", "1:30.5")],
)
def test_a_number_means_the_same_in_a_file_and_on_the_command_line(file, text, seed):
    """YAML 1.1 alone would read 0777 as 511 and 1:30 as 90."""
    for load in (
        lambda: configs.load_config(file(f"seed: {text}")),
        lambda: configs.load_config("star", [f"seed={text}"]),
    ):
        if seed is None:
            with pytest.raises(ValueError, match=text.replace(".", "\\.")):
                load()
        else:
            assert load().seed == seed


@pytest.mark.parametrize("text", ["1_0.5", "1:30.5"])
def test_a_fraction_means_the_same_in_a_file_and_on_the_command_line(file, text):
    for load in (
        lambda: configs.load_config(file(f"sft: {{lr: {text}}}")),
        lambda: configs.load_config("star", [f"sft.lr={text}"]),
    ):
        with pytest.raises(ValueError, match=text.replace(".", "\\.")):
            load()


def test_home_is_not_a_folder_called_tilde(file, monkeypatch, tmp_path):
    """In every path that a user gives: results, a config, a study, a run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file("seed: 3")
    assert configs.load_config("star", ["runs=~/x"]).runs == str(tmp_path / "x")
    assert configs.load_config("~/mine.yaml").seed == 3 and study.path_of("~/one.yaml") == tmp_path / "one.yaml"
    with pytest.raises(ValueError, match=str(tmp_path / "gone")):
        mf.load("~/gone")
    with pytest.raises(ValueError, match="~nobody-here"):
        configs.load_config("star", ["runs=~nobody-here/x"])

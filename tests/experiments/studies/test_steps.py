"""What a study says of bases that it cannot compare."""

from experiments import study
from experiments.studies.steps import mixed_bases
from tests.helpers.pipeline import BASE


def test_bases_of_another_muon(copy, capsys):
    pipeline = copy(BASE)
    plain, torch = (pipeline.config(f"pretrain.muon={kind}") for kind in ("minifork", "torch"))
    one, other = (study.plans(config, [{"sft.fork_rate": 1}], [0]) for config in (plain, torch))
    assert mixed_bases(plain, one) == []
    assert pipeline("pretrain", "pretrain.muon=torch") == 0
    (line,) = mixed_bases(plain, one)
    assert line.startswith(f"{pipeline.folder}: 1 runs") and "pretrain.muon=torch" in line
    (line,) = mixed_bases(torch, other)
    assert line.startswith(f"{pipeline.folder}: 1 runs") and "pretrain.muon=minifork" in line
    (line,) = mixed_bases(plain, one + other)
    assert line == "this study compares bases of pretrain.muon=minifork and torch"

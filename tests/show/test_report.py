"""The report on a model: its numbers are those of the single calls, and every form has them."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_core as lc


class Tied(nn.Module):
    """An encoder whose weight decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encode(x)) @ self.encode.weight


class Classifier(nn.Module):
    """A small Transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


def rows(*shape: int) -> Tensor:
    return torch.randn(48, *shape, generator=torch.Generator().manual_seed(0))


CASES = {
    "classifier": (lambda: lc.MLP((5,), 3, width=8), F.cross_entropy, (5,),
                   torch.arange(48) % 3),
    "regression": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)),
                   F.mse_loss, (5,), rows(1)),
    "tied": (Tied, F.mse_loss, (6,), rows(6)),
    "transformer": (Classifier, F.cross_entropy, (7, 4), torch.arange(48) % 3),
    "batchnorm": (lambda: lc.SmallCNN((1, 8, 8), 3, width=4), F.cross_entropy, (1, 8, 8),
                  torch.arange(48) % 3),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def made(request):
    """A model, its criterion and data, and the quick report on them."""
    torch.manual_seed(0)
    make, criterion, shape, targets = CASES[request.param]
    model, data = make(), [(rows(*shape)[:30], targets[:30]), (rows(*shape)[30:], targets[30:])]
    page = lc.report(model, criterion, data, quick=True, progress=False, title="<Mine>")
    return lc.Objective(model, criterion, data), page


def test_its_numbers_are_those_of_the_single_calls(made):
    objective, page = made
    evaluation = objective.evaluate()
    assert page["parameters"].value == objective.n
    assert page["examples"].value == 48
    assert page["loss"].value == evaluation.loss
    labelled = any(number.quantity == "accuracy" for number in page.numbers)
    assert labelled == (evaluation.accuracy is not None)
    assert page["norm of the gradient"].value == float(objective.gradient().norm())
    top = lc.top_eigenpairs(lc.Hessian(objective), 1, "LA", tol=1e-4)
    assert page["largest eigenvalue"].value == pytest.approx(float(top.values[0]), rel=1e-3)
    relative = lc.relative_curvature(objective)
    assert page["largest relative curvature"].value == float(relative.values[0])
    exact = float(lc.Hessian(objective).dense().trace())
    low, high = page["trace"].value.interval(0.999)
    rounding = 1e-5 * abs(exact)
    assert low - rounding <= exact <= high + rounding


def test_every_form_has_every_number(made, tmp_path):
    _, page = made
    text, markup = str(page), page._repr_html_()
    stored = json.loads(page.save(tmp_path / "page.json").read_text())
    assert len(stored["numbers"]) == len(page.numbers)
    assert "&lt;Mine&gt;" in markup
    assert "<Mine>" not in markup
    markdown = page.save(tmp_path / "page.md").read_text()
    whole = page.save(tmp_path / "page.html").read_text()
    assert markdown.startswith("# \\<Mine\\>\n")
    for number, plain in zip(page.numbers, stored["numbers"], strict=True):
        for form in (text, markup, markdown, whole):
            assert number.written in form
        if isinstance(number.value, lc.Estimate):
            assert plain["value"] == number.value.value
            assert plain["error is"] == "standard error"
    for sentence in page.reading:
        assert sentence in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.split("Reading")[1].splitlines())
    assert whole.count("<img") == len(list(tmp_path.glob("*.png"))) >= 2
    assert "://" not in whole  # nothing is fetched from elsewhere
    latex = page.save(tmp_path / "page.tex").read_text()
    for name in re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", latex):
        assert (tmp_path / name).exists()
    assert latex.count("\\begin{figure}") == whole.count("<img")
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(page.numbers)
    assert latex.isascii()
    assert page.save(tmp_path / "page.txt").read_text() == f"{page}\n"


def test_a_full_report_has_its_layers_and_says_what_it_costs(capsys):
    data = rows(5), torch.arange(48) % 3
    page = lc.report(lc.MLP((5,), 3, width=6), F.cross_entropy, data)
    told = capsys.readouterr().out
    assert "MLP: 99 parameters, 48 examples; about" in told
    assert any("largest eigenvalue" in n.quantity and ":" in n.quantity for n in page.numbers)
    assert page.spent["seconds"] > 0


def test_names_of_layers_do_not_break_the_table_of_a_page(tmp_path):
    model = nn.ModuleDict({"a|b": nn.Linear(5, 3), "c<d>": nn.Linear(3, 3)})
    model.forward = lambda x: model["c<d>"](model["a|b"](x))
    data = rows(5), torch.arange(48) % 3
    page = lc.report(model, F.cross_entropy, data, progress=False)
    markdown = page.save(tmp_path / "my page.md").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert any(r"a\|b: trace" in line for line in lines)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in lines)
    for name in re.findall(r"\]\(<(.*?)>\)", markdown):
        assert (tmp_path / name).exists()
    assert "](<my page_" in markdown


def test_a_network_of_zeros_has_a_report_without_sharpness():
    model = nn.Linear(5, 3)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    data = rows(5), torch.arange(48) % 3
    page = lc.report(model, F.cross_entropy, data, quick=True, progress=False)
    assert any("all weights are zero" in sentence for sentence in page.reading)
    assert page["largest eigenvalue"].value > 0


def test_bad_input_gets_one_sentence(made, tmp_path):
    _, page = made
    with pytest.raises(
        ValueError, match=r"path must end in \.html, \.md, \.tex, \.json, \.txt"
    ):
        page.save(tmp_path / "page.pdf")
    with pytest.raises(KeyError, match="quantity must be one of 'parameters'"):
        page["beauty"]
    with pytest.raises(ValueError, match="the data are empty"):
        lc.report(nn.Linear(3, 2), F.cross_entropy, [])

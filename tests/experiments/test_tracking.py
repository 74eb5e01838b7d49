"""Curvature while training: the same numbers, cheaper, and no trace left in the training."""

import copy

import pytest
import torch
import torch.nn.functional as F

import landscape_core as lc


@pytest.fixture(scope="module")
def data():
    return lc.load("digits", subset=(200, 50))


class Snapshots:
    """Keeps a copy of the model at every step and epoch."""

    def __init__(self):
        self.steps, self.epochs = {}, {}

    def __call__(self, state):
        self.epochs[state.epoch] = copy.deepcopy(state.model)

    def on_step(self, state):
        self.steps[state.step] = copy.deepcopy(state.model)


def run(data, callbacks, **options):
    model = lc.MLP(data.input_shape, data.classes, width=8, activation="tanh")
    config = lc.TrainConfig("sgd", **{"epochs": 3, "batch_size": 50, **options})
    history = lc.train(model, data, config, callbacks, progress=False)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), history


@pytest.mark.parametrize("options", [{"every_steps": 4}, {"every_epochs": 1}])
def test_followed_eigenvalues_are_those_of_a_fresh_search(data, options):
    tracker = lc.CurvatureTracker(F.cross_entropy, data.train, tol=1e-3, layers=True, **options)
    snapshots = Snapshots()
    run(data, [tracker, snapshots])
    for record in tracker.records:
        kept = snapshots.steps if "every_steps" in options else snapshots.epochs
        model = kept[record["step" if "every_steps" in options else "epoch"]]
        H = lc.Hessian(lc.Objective(model, F.cross_entropy, data.train))
        fresh = float(lc.top_eigenpairs(H, 1, "LA", tol=1e-5).values[0])
        assert record["lambda_max"] == pytest.approx(fresh, rel=2e-3)
        assert record["residual"] <= 1e-3 * record["lambda_max"]
        assert record["converged"]
        for layer in ("1", "3", "5"):
            block = H.block(f"{layer}.*")
            fresh = float(lc.top_eigenpairs(block, 1, "LA", tol=1e-5).values[0])
            assert record[layer] == pytest.approx(fresh, rel=2e-3)


def test_later_searches_need_fewer_products_than_the_first(data):
    tracker = lc.CurvatureTracker(F.cross_entropy, data.train, every_steps=1)
    run(data, [tracker], lr=0.01)
    spent = tracker.table()["matvecs"]
    assert len(spent) == 12
    assert spent[1:].max() < spent[0]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [4, 8, 12]),
        ({"every_epochs": 2}, [8]),
        ({"every_epochs": 5}, []),
        ({"every_steps": 1}, list(range(1, 13))),
        ({"every_steps": 5}, [5, 10]),
        ({"every_steps": 5, "every_epochs": 1}, [5, 10]),
    ],
)
def test_measurements_come_when_they_were_asked_for(data, options, steps):
    tracker = lc.CurvatureTracker(F.cross_entropy, data.train, tol=0.5, **options)
    run(data, [tracker])
    assert [record["step"] for record in tracker.records] == steps
    assert [record["epoch"] for record in tracker.records] == [-(-s // 4) for s in steps]


@pytest.mark.parametrize("options", [{"every_steps": 3}, {"every_epochs": 1, "layers": True}])
def test_training_is_bit_identical_with_and_without_a_tracker(data, options):
    tracker = lc.CurvatureTracker(F.cross_entropy, data.train, **options)
    (alone, plain), (followed, history) = run(data, []), run(data, [tracker])
    assert torch.equal(alone, followed)
    assert [e.train_loss for e in plain.epochs] == [e.train_loss for e in history.epochs]
    assert tracker.records


def test_the_table_has_a_column_for_each_layer_that_is_followed(data):
    columns = ["epoch", "step", "lambda_max", "residual", "converged", "matvecs"]
    for layers in (False, True):
        tracker = lc.CurvatureTracker(F.cross_entropy, data.train, tol=0.5, layers=layers)
        run(data, [tracker], epochs=1)
        table = tracker.table()
        assert list(table.columns) == columns + (["1", "3", "5"] if layers else [])
        assert len(table) == 1
    assert (table[["1", "3", "5"]].iloc[0] <= table["lambda_max"].iloc[0] * 1.5).all()


@pytest.mark.parametrize("options", [{"every_steps": 1}, {}])
def test_a_training_that_diverges_is_followed_to_its_end(data, options):
    tracker = lc.CurvatureTracker(F.cross_entropy, data.train, **options)
    model = lc.MLP(data.input_shape, data.classes, width=8, seed=0)
    config = lc.TrainConfig("sgd", lr=1e6, epochs=5)
    history = lc.train(model, data, config, [tracker], progress=False)
    assert history.status == "diverged"
    table = tracker.table()
    if options:
        assert table["lambda_max"].isna().any()
        assert not table["converged"][table["lambda_max"].isna()].any()


def test_a_layer_with_the_name_of_a_column_is_refused(data):
    model = torch.nn.ModuleDict({"residual": torch.nn.Linear(64, 10)})
    model.forward = lambda x: model["residual"](x.flatten(1))
    tracker = lc.CurvatureTracker(F.cross_entropy, data.train, layers=True)
    with pytest.raises(ValueError, match="must not be named as a column, got 'residual'"):
        lc.train(model, data, lc.TrainConfig(epochs=1), [tracker], progress=False)


def test_a_block_of_parameters_can_be_followed_alone(data):
    tracker = lc.CurvatureTracker(F.cross_entropy, data.train, parameters="5.*", layers=True)
    run(data, [tracker], epochs=1)
    (record,) = tracker.records
    assert record["5"] == pytest.approx(record["lambda_max"], rel=2e-2)
    assert "3" not in record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_steps": 0}, "every_steps must be a whole number >= 1, got 0"),
        ({"every_steps": 1.5}, "every_steps must be a whole number >= 1, got 1.5"),
        ({"every_epochs": 0}, "every_epochs must be a whole number >= 1, got 0"),
        ({"tol": 0}, "tol must be positive, got 0"),
    ],
)
def test_bad_arguments_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        lc.CurvatureTracker(F.cross_entropy, data.train, **options)


def test_weights_are_kept_as_theta_and_survive_an_interruption(tmp_path):
    data = lc.load("digits", subset=(150, 50))
    config = lc.TrainConfig(epochs=4, batch_size=50)
    model, tracker = lc.MLP(data.input_shape, data.classes, width=8), lc.WeightTracker(2)
    lc.train(model, data, config, [tracker], progress=False)
    assert len(tracker.thetas) == 2
    assert torch.equal(
        tracker.thetas[-1], lc.Objective(model, F.cross_entropy, data.train).theta
    )
    again = lc.WeightTracker(2)
    again.load_state_dict(tracker.state_dict())
    assert all(map(torch.equal, again.thetas, tracker.thetas))
    with pytest.raises(ValueError, match="every_epochs must be a whole number >= 1, got 0"):
        lc.WeightTracker(0)

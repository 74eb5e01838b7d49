"""Faults that were once here, or that other code has: each stays mended."""

import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

import landscape_core as lc


def data(examples=12, features=4, classes=3):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(examples, features, generator=rng), torch.arange(examples) % classes


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x, mask):
        return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))


def test_padded_attention_has_one_loss_with_and_without_a_gradient():
    # The inference path of nn.TransformerEncoder zeroes padded positions; training does not.
    torch.manual_seed(0)
    x, mask = torch.randn(6, 5, 4), torch.zeros(6, 5, dtype=torch.bool)
    mask[:, 3:] = True
    objective = lc.Objective(Padded(), F.cross_entropy, ((x, mask), torch.arange(6) % 3))
    (batch,) = objective.batches()
    with_gradient = objective.batch_loss(objective.theta.clone().requires_grad_(), batch)
    torch.testing.assert_close(objective.loss().float(), with_gradient.detach())
    gradients = torch.cat(list(objective.per_example_gradients()))
    torch.testing.assert_close(gradients.mean(0), objective.gradient())
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_wrong_second_derivative_of_weight_norm_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = data()
    objective = lc.Objective(model, F.cross_entropy, (x.double(), y))
    with pytest.raises(ValueError, match="weight_norm has a wrong second derivative"):
        lc.trace(lc.Hessian(objective))
    difference = lc.Hessian(objective, method="finite_difference").dense()
    assert float((difference - difference.T).norm() / difference.norm()) < 1e-8


def test_checkpointed_activations_are_those_of_theta():
    class Checkpointed(nn.Module):
        def __init__(self, active):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.active = active

        def block(self, x):
            return torch.tanh(self.b(x))

        def forward(self, x):
            x = torch.tanh(self.a(x))
            x = checkpoint(self.block, x, use_reentrant=False) if self.active else self.block(x)
            return self.c(x)

    torch.manual_seed(0)
    plain, checkpointed = Checkpointed(False).double(), Checkpointed(True).double()
    x, y = data()
    theta = torch.randn(lc.Objective(plain, F.cross_entropy, (x.double(), y)).n).double()
    found = []
    for model in (plain, checkpointed):
        objective = lc.Objective(model, F.cross_entropy, (x.double(), y))
        found.append((objective.gradient(theta), lc.Hessian(objective, theta).dense()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_a_model_that_writes_into_its_input_is_refused():
    class Writes(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul_(1.5))

    x, y = data()
    with pytest.raises(ValueError, match="writes into its inputs"):
        lc.Objective(Writes(4, 3), F.cross_entropy, (x, y))


def test_a_batch_with_nan_is_named_at_every_product():
    x, y = data()
    bad = x.clone()
    bad[0] = torch.nan
    H = lc.Hessian(lc.Objective(lc.MLP((4,), 3, width=4), F.cross_entropy, [(x, y), (bad, y)]))
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="batch 1"):
            H @ torch.ones(H.n)


def test_an_operator_lets_go_of_its_graphs_when_it_is_dropped():
    x, y = data()
    H = lc.Hessian(lc.Objective(lc.MLP((4,), 3, width=4), F.cross_entropy, (x, y)))
    H @ torch.ones(H.n)
    dropped = weakref.ref(H)
    del H
    assert dropped() is None


def test_an_operator_that_changes_between_products_is_noticed():
    class Drifting(lc.SymmetricOperator):
        def _multiply(self, vectors):
            return torch.randn(self.n, self.n, dtype=self.dtype) @ vectors

    with pytest.raises(ValueError, match="not symmetric"):
        lc.top_eigenpairs(Drifting(30, torch.float64, torch.device("cpu")), 2)


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([10.0, 1.0, 1.0])),
        nn.CrossEntropyLoss(ignore_index=0),
        lambda out, y: F.cross_entropy(out, y) + 1 / len(y),
    ],
)
def test_criteria_that_are_not_means_over_examples_are_refused(criterion):
    with pytest.raises(ValueError, match="criterion must be the mean over examples, got"):
        lc.Objective(lc.MLP((4,), 3, width=5), criterion, data(9))


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([10.0, 1.0, 1.0])),
        nn.CrossEntropyLoss(ignore_index=0),
    ],
)
@pytest.mark.parametrize(
    "measure",
    [
        lc.Objective.loss,
        lambda objective: lc.Hessian(objective) @ torch.ones(objective.n),
        lambda objective: lc.GaussNewton(objective) @ torch.ones(objective.n),
    ],
)
def test_they_are_refused_where_a_later_batch_shows_it(criterion, measure):
    x, _ = data(9)
    batches = [(x[:4], torch.ones(4, dtype=torch.int64)), (x[4:], torch.arange(5) % 3)]
    objective = lc.Objective(lc.MLP((4,), 3, width=5), criterion, batches)
    with pytest.raises(ValueError, match="criterion must be the mean over examples, got"):
        measure(objective)


def test_targets_that_broadcast_against_outputs_are_refused():
    x, _ = data()
    with (
        pytest.warns(UserWarning, match="target size"),
        pytest.raises(ValueError, match="shapes that"),
    ):
        lc.Objective(nn.Linear(4, 1), F.mse_loss, (x, x[:, 0]))


def test_a_sum_is_noticed_behind_a_first_batch_of_one():
    x, y = data()
    batches = [(x[:1], y[:1]), (x[1:], y[1:])]
    with pytest.raises(ValueError, match="got their sum"):
        lc.Objective(nn.Linear(4, 3), nn.CrossEntropyLoss(reduction="sum"), batches)


def test_criteria_that_vmap_cannot_follow_still_have_example_losses():
    def branching(outputs, targets):
        if float(outputs.detach().sum()) > 1e9:
            return outputs.sum()
        return F.cross_entropy(outputs, targets)

    model = nn.Linear(4, 3)
    objective = lc.Objective(model, branching, data())
    plain = lc.Objective(model, F.cross_entropy, data())
    torch.testing.assert_close(objective.example_values()[0], plain.example_values()[0])


@pytest.mark.parametrize("kind", ["shuffle", "weighted", "batch sampler"])
def test_loaders_that_reorder_are_refused(kind):
    dataset = TensorDataset(*data())
    loader = {
        "shuffle": lambda: DataLoader(dataset, shuffle=True),
        "weighted": lambda: DataLoader(
            dataset, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 12, 12)
        ),
        "batch sampler": lambda: DataLoader(
            dataset, batch_sampler=BatchSampler(RandomSampler(dataset), 4, drop_last=False)
        ),
    }[kind]()
    with pytest.raises(ValueError, match=r"same order each time, got a \w+Sampler"):
        lc.Objective(nn.Linear(4, 3), F.cross_entropy, loader)


def test_loaders_that_augment_at_random_are_refused():
    class Noisy(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return torch.randn(4), i % 3

    with pytest.raises(ValueError, match="augmentation off"):
        lc.Objective(nn.Linear(4, 3), F.cross_entropy, DataLoader(Noisy(), batch_size=3))


@pytest.mark.parametrize("shuffle", [False, True])
def test_loaders_of_whole_batches_are_refused(shuffle):
    x, y = data()
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    loader = DataLoader(batches, batch_size=None, shuffle=shuffle)
    with pytest.raises(ValueError, match="put the batches together itself, got batch_size=Non"):
        lc.Objective(nn.Linear(4, 3), F.cross_entropy, loader)
    assert lc.Objective(nn.Linear(4, 3), F.cross_entropy, list(loader)).examples == 12


def test_a_loader_of_a_part_has_as_many_examples_as_it_gives():
    part = SequentialSampler(range(5))
    loader = DataLoader(TensorDataset(*data()), batch_size=2, sampler=part)
    objective = lc.Objective(nn.Linear(4, 3), F.cross_entropy, loader)
    assert objective.examples == sum(len(y) for _, y in objective.batches()) == 5


def test_a_loader_leaves_the_random_state_alone():
    loader = DataLoader(TensorDataset(*data()), batch_size=5)
    model = nn.Linear(4, 3)
    state = torch.get_rng_state()
    objective = lc.Objective(model, F.cross_entropy, loader)
    objective.loss()
    assert objective.examples == 12
    assert torch.equal(torch.get_rng_state(), state)


def test_what_callbacks_draw_does_not_change_the_training():
    images = lc.load("digits", subset=(200, 100))

    def final(callbacks):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        lc.train(model, images, lc.TrainConfig(epochs=2), callbacks, progress=False)
        return model[2].weight

    assert torch.equal(final([]), final([lambda _: torch.rand(3)]))


def test_rounding_is_part_of_the_error_of_a_tiny_rise():
    images = lc.load("digits", subset=(300, 100))
    model = lc.MLP(images.input_shape, 10, width=16, activation="tanh")
    lc.train(model, images, lc.TrainConfig(epochs=10), progress=False)
    single = lc.Objective(model, F.cross_entropy, images.train)
    exact = lc.Objective(
        model.double(), F.cross_entropy, (images.train.inputs.double(), images.train.targets)
    )
    truth = float(lc.Hessian(exact).dense().trace()) / (2 * exact.n)
    for radius in (1e-4, 1e-3, 1e-2):
        (rise,) = lc.flatness_profile(single, [radius], directions=64).rises
        assert abs(rise.value - truth * radius**2) < 4 * rise.stderr


def test_an_objective_does_not_follow_the_model_after_it_was_made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    whole = lc.Objective(model, F.cross_entropy, data())
    block = lc.Objective(model, F.cross_entropy, data(), parameters="0.*")
    before = float(whole.loss()), float(block.loss())
    model.train()(torch.randn(20, 4) * 5)
    with torch.no_grad():
        model[2].weight.mul_(2)
    assert (float(whole.loss()), float(block.loss())) == before


def test_buffers_that_count_calls_do_not_count_ours():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = Counting()
    objective = lc.Objective(model, F.cross_entropy, data())
    lc.top_eigenpairs(lc.Hessian(objective), 2)
    assert float(model.calls) == 0


def test_nor_do_they_count_between_products_at_refreshed_statistics():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, x):
            self.passes += 1
            return self.head(torch.tanh(self.passes * self.norm(x)))

    class Plain(Counting):
        def forward(self, x):
            return self.head(torch.tanh(self.norm(x)))

    x, y = data()
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    model, plain = Counting(), Plain()
    plain.load_state_dict(model.state_dict())
    objective, expected = (
        lc.Objective(m, F.cross_entropy, batches, batchnorm="refresh") for m in (model, plain)
    )
    torch.testing.assert_close(objective.loss(), expected.loss())
    held = objective.statistics(objective.theta)
    for _ in range(2):
        torch.testing.assert_close(objective.gradient(None, held), expected.gradient())
    v = torch.ones(objective.n)
    for budget in (None, 0):
        H = lc.Hessian(objective, memory_budget=budget)
        for _ in range(2):
            torch.testing.assert_close(H @ v, lc.Hessian(expected) @ v)


def test_a_model_that_is_itself_a_batch_norm_is_refreshed():
    x, y = data(features=3)
    objective = lc.Objective(nn.BatchNorm1d(3), F.cross_entropy, (x, y), batchnorm="refresh")
    expected = F.cross_entropy((x - x.mean(0)) / (x.var(0) + 1e-5).sqrt(), y)
    torch.testing.assert_close(objective.loss().float(), expected)
    bare = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="the model keeps no running statistics"):
        lc.Objective(bare, F.cross_entropy, (x, y))


def test_one_logit_and_counts_have_no_invented_accuracy():
    x, _ = data()
    counts = torch.arange(12) % 4
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    assert lc.Objective(model, nn.PoissonNLLLoss(), (x, counts)).evaluate().accuracy is None


def test_divergence_in_the_very_last_step_is_recorded():
    images = lc.load("digits", subset=(300, 100))
    model = lc.MLP(images.input_shape, 10, width=8)
    config = lc.TrainConfig(epochs=1, lr=1e30, batch_size=300)
    assert lc.train(model, images, config, progress=False).status == "diverged"


def test_a_last_batch_of_one_joins_the_one_before():
    images = lc.load("digits", subset=(129, 100))
    model = lc.MLP(images.input_shape, 10, width=8, batchnorm=True)
    history = lc.train(model, images, lc.TrainConfig(batch_size=64, epochs=1), progress=False)
    assert history.status == "done"


def test_a_run_that_diverged_at_once_can_be_drawn():
    images = lc.load("digits", subset=(300, 100))
    model = lc.MLP(images.input_shape, 10, width=8)
    history = lc.train(model, images, lc.TrainConfig(lr=1e30), progress=False)
    assert list(history.table().columns)[:2] == ["epoch", "lr"]
    lc.plot_training({"diverged": history})


@pytest.mark.parametrize("loss", [np.ones((3, 3)), np.zeros((3, 3)), -np.eye(3)])
def test_flat_and_negative_planes_can_be_drawn(loss):
    x = np.arange(3.0)
    lc.plot_contours({"plane": lc.Plane(x, x, loss, None)}).png()
    with_gaps = np.where(np.eye(3) > 0, np.inf, loss)
    lc.plot_contours({"plane": lc.Plane(x, x, with_gaps, None)}).png()


def test_images_that_are_not_finite_are_refused():
    pixels = np.zeros((4, 3, 3))
    pixels[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="train images must be real and finite"):
        lc.images((pixels, [0, 1, 0, 1]), (np.zeros((2, 3, 3)), [0, 1]))


def test_noise_scale_of_a_network_without_gradient_is_infinite_not_an_error():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(model[0].bias, -1)  # every unit is off
    x, y = data()
    objective = lc.Objective(model, F.cross_entropy, (x, y), parameters="0.*")
    noise = lc.gradient_noise_scale(objective, 2, 4, draws=3)
    assert noise.scale.value == math.inf
    assert not noise.determined


def test_statistics_that_do_not_exist_are_refused():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="1 keeps no running statistics"):
        lc.Objective(model, F.cross_entropy, data())
    normed = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    x, y = data()
    with pytest.raises(ValueError, match="at least two examples in every batch"):
        lc.Objective(normed, F.cross_entropy, [(x[:11], y[:11]), (x[11:], y[11:])],
                     batchnorm="refresh")  # fmt: skip


def test_a_chosen_block_that_the_loss_does_not_use_is_refused():
    class Unused(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.idle = nn.Linear(2, 2)

    with pytest.raises(ValueError, match="does not depend on theta"):
        lc.Objective(Unused(), F.cross_entropy, data(), parameters="idle.*")
    with pytest.raises(ValueError, match=r"no parameters match 'none\.\*'"):
        lc.Objective(Unused(), F.cross_entropy, data(), parameters=["weight", "none.*"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: lc.top_eigenpairs(o), r"such as Hessian\(objective\), got Objective"),
        (lambda o: lc.trace(o), "an operator is needed"),
        (lambda o: lc.Hessian(o.model), "Hessian needs an Objective.*, got Linear"),
        (lambda o: lc.Segment(o, o), "such as objective.theta, got Objective"),
        (lambda o: lc.path_profile(o, o.theta), "path must be callable.*, got Tensor"),
        (lambda o: lc.train(o.model, data()), "data must be Images.*, got tuple"),
        (lambda o: lc.train(o.model, lc.load("digits"), {}), "must be a TrainConfig, got dict"),
        (
            lambda o: lc.Objective(o.model, nn.CrossEntropyLoss, data()),
            r"CrossEntropyLoss\(\), got CrossEntropyLoss",
        ),
    ],
)
def test_a_thing_of_another_kind_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call(lc.Objective(nn.Linear(4, 3), F.cross_entropy, data()))

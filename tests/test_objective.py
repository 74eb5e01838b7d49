"""L(theta), its gradient and its evaluation, against the same written out plainly."""

import pytest
import torch
import torch.nn.functional as F
from conftest import CASES, ragged, whole_loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import landscape_core as lc


def test_loss_and_gradient_are_those_of_all_examples_at_once(case):
    objective = case.objective()
    reference = whole_loss(objective)
    torch.testing.assert_close(objective.loss(), reference(objective.theta), rtol=1e-12, atol=0)
    expected = torch.func.grad(reference)(objective.theta)
    torch.testing.assert_close(objective.gradient(), expected, rtol=1e-9, atol=1e-13)


def test_examples_need_not_lie_along_the_first_axis_of_the_inputs():
    """As with a recurrent network of steps first, and with labels that are flattened."""

    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(x).flatten(0, 1)

    torch.manual_seed(0)
    x, y = torch.randn(7, 6, 4), torch.randint(3, (42,))
    for model, targets in ((Last(), y[:6]), (Flat(4, 3), y)):
        objective = lc.Objective(model, F.cross_entropy, (x, targets))
        expected = F.cross_entropy(model(x), targets).detach()
        torch.testing.assert_close(objective.loss(), expected, check_dtype=False)


def test_theta_is_a_copy_in_the_order_of_the_parameters(objective):
    flat = torch.cat([p.reshape(-1) for p in objective.model.parameters()])
    assert torch.equal(objective.theta, flat)
    with torch.no_grad():
        next(objective.model.parameters()).add_(1)
    assert not torch.equal(
        objective.theta[:4], next(objective.model.parameters()).flatten()[:4]
    )


def test_every_container_of_batches_gives_the_same_loss():
    model = lc.MLP((4,), 3, width=5)
    x, y = torch.randn(23, 4), torch.arange(23) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    losses = [
        lc.Objective(model, F.cross_entropy, data).loss()
        for data in [(x, y), [x, y], ragged(x, y), loader]
    ]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


def test_evaluation_has_the_standard_errors_of_the_examples(objective):
    result = objective.evaluate()
    losses, correct = objective.example_values()
    torch.testing.assert_close(losses.mean(), objective.loss())
    assert result.loss.stderr == pytest.approx(float(losses.std()) / 23**0.5)
    assert result.accuracy.value == pytest.approx(float(objective.accuracy()))
    assert result.accuracy.samples == len(correct) == 23


def test_per_example_gradients_average_to_the_gradient(objective):
    gradients = torch.cat(list(objective.per_example_gradients(chunk_size=4)))
    assert gradients.shape == (23, objective.n)
    torch.testing.assert_close(gradients.mean(0), objective.gradient())


def test_sample_gives_the_examples_asked_for_across_batches():
    x, y = torch.arange(23.0).unsqueeze(1), torch.arange(23) % 3
    model = nn.Linear(1, 3)
    wanted = torch.tensor([22, 0, 7, 7, 13])
    for data in [(x, y), ragged(x, y), DataLoader(TensorDataset(x, y), batch_size=7)]:
        inputs, targets = lc.Objective(model, F.cross_entropy, data).sample(wanted)
        assert sorted(inputs.flatten().tolist()) == sorted(wanted.tolist())
        assert torch.equal(targets, inputs.flatten().long() % 3)


class Last(nn.Module):
    """A recurrent network whose inputs have the steps on the first axis."""

    def __init__(self, steps_first=True):
        super().__init__()
        self.steps, self.head = nn.RNN(4, 5), nn.Linear(5, 3)
        self.steps_first = steps_first

    def forward(self, x):
        return self.head(self.steps(x if self.steps_first else x.transpose(0, 1))[0][-1])


class Scaled(nn.Linear):
    """All examples share the factors of the features."""

    def forward(self, x, factors):
        return super().forward(x * factors)


TAKES = {
    "sample": lambda o: o.sample(torch.tensor([3])),
    "batch_sharpness": lambda o: lc.batch_sharpness(o, 4, draws=2),
    "per_example_gradients": lambda o: list(o.per_example_gradients()),
}


@pytest.mark.parametrize("steps", [6, 7])
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_examples_are_not_taken_along_another_axis_than_theirs(take, steps):
    torch.manual_seed(0)
    x, y = torch.randn(steps, 6, 4), torch.arange(6) % 3
    with pytest.raises(ValueError, match="single examples are needed here, so row i of every"):
        take(lc.Objective(Last(), F.cross_entropy, (x, y)))
    inputs = torch.randn(4, 4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match=r"inputs: .*\(4, 4\), 1: .*\(4,\), and targets: "):
        take(lc.Objective(Scaled(4, 3), F.cross_entropy, (inputs, y[:4])))
    first = lc.Objective(Last(steps_first=False), F.cross_entropy, (x.transpose(0, 1), y))
    take(first)


def test_a_loader_puts_its_examples_on_the_axis_that_the_model_wants():
    torch.manual_seed(0)
    x, y = torch.randn(6, 6, 4), torch.arange(6) % 3

    def collate(examples):
        steps, targets = zip(*examples, strict=True)
        return torch.stack(steps, 1), torch.stack(targets)

    loader = DataLoader(TensorDataset(x, y), batch_size=4, collate_fn=collate)
    objective = lc.Objective(Last(), F.cross_entropy, loader)
    inputs, targets = objective.sample(torch.tensor([5, 2]))
    assert torch.equal(inputs, x[[5, 2]].transpose(0, 1))
    assert torch.equal(targets, y[[5, 2]])
    with pytest.raises(ValueError, match="single examples are needed here"):
        list(objective.per_example_gradients())


def test_examples_that_share_the_statistics_of_their_batch_are_sampled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    data = torch.randn(20, 4), torch.arange(20) % 3
    for policy in ("eval", "batch", "refresh"):
        objective = lc.Objective(model, F.cross_entropy, data, batchnorm=policy)
        inputs, _ = objective.sample(torch.tensor([7, 3]))
        assert torch.equal(inputs, data[0][[7, 3]])


def test_flags_among_the_inputs_belong_to_every_example():
    class Flagged(nn.Linear):
        def forward(self, x, double=False, mask=None):
            assert double is True
            assert mask is None
            return super().forward(2 * x)

    torch.manual_seed(0)
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    plain = lc.Objective(nn.Linear(4, 3), F.cross_entropy, (2 * x, y))
    expected = torch.cat(list(plain.per_example_gradients(plain.theta)))
    for inputs in ({"x": x, "double": True, "mask": None}, (x, True, None)):
        objective = lc.Objective(Flagged(4, 3), F.cross_entropy, [(inputs, y)])
        found = torch.cat(list(objective.per_example_gradients(plain.theta, chunk_size=2)))
        torch.testing.assert_close(found, expected)
        noise = lc.exact_noise_scale(objective, theta=plain.theta)
        assert noise.scale.value == pytest.approx(lc.exact_noise_scale(plain).scale.value)


def test_batchnorm_policies_use_the_statistics_they_name():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, affine=False, momentum=0.5)
    model = nn.Sequential(nn.Linear(3, 3), norm, nn.Linear(3, 2)).double()
    x, y = torch.randn(40, 3, dtype=torch.float64) * 3 + 1, torch.arange(40) % 2
    hidden = model[0](x)
    mean, var = hidden.mean(0), hidden.var(0)

    def expected(mean, var):
        scaled = (hidden - mean) / (var + norm.eps).sqrt()
        return F.cross_entropy(model[2](scaled), y).detach()

    def measured(policy):
        return lc.Objective(model, F.cross_entropy, (x, y), batchnorm=policy).loss()

    zero, one = torch.zeros(3).double(), torch.ones(3).double()
    torch.testing.assert_close(measured("eval"), expected(zero, one))
    biased = hidden.var(0, correction=0)
    torch.testing.assert_close(measured("batch"), expected(mean, biased))
    torch.testing.assert_close(measured("refresh"), expected(mean, var))


def test_batch_norm_weights_before_it_have_no_radial_slope_and_curvature():
    # With batch statistics (eps -> 0) the loss does not change with the length of w.
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, eps=1e-14)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), norm, nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(30, 3, dtype=torch.float64), torch.arange(30) % 2
    objective = lc.Objective(
        model.double(), F.cross_entropy, (x, y), parameters="0.*", batchnorm="batch"
    )
    w, g = objective.theta, objective.gradient()
    product = lc.Hessian(objective) @ w
    torch.testing.assert_close(w @ g, torch.zeros((), dtype=g.dtype), atol=1e-9, rtol=0)
    torch.testing.assert_close(product, -g, atol=1e-8, rtol=1e-6)


def test_parameters_can_be_a_block():
    model = lc.MLP((4,), 3, width=5)
    x, y = torch.randn(23, 4), torch.arange(23) % 3
    for choice in ("1.*", ["1.weight", "1.bias"], lambda name, _: name.startswith("1.")):
        objective = lc.Objective(model, F.cross_entropy, (x, y), parameters=choice)
        assert objective.space.names == ("1.weight", "1.bias")
        assert objective.n == 25


def test_frozen_parameters_stay_out_of_theta_and_tied_ones_count_once():
    by_name = {case.name: case for case in CASES}
    assert by_name["frozen layer"].objective().space.names == ("2.weight", "2.bias")
    assert "second.weight" not in by_name["tied weights"].objective().space.names


class TestBadInput:
    x, y = torch.randn(6, 4), torch.arange(6) % 3

    def make(self, model=None, criterion=F.cross_entropy, data=None, **options):
        return lc.Objective(
            model or nn.Linear(4, 3),
            criterion,
            (self.x, self.y) if data is None else data,
            **options,
        )

    def test_empty_data(self):
        with pytest.raises(ValueError, match="data are empty"):
            self.make(data=(self.x[:0], self.y[:0]))

    def test_not_batches(self):
        with pytest.raises(TypeError, match=r"batches must be .* got int"):
            self.make(data=7)

    def test_a_loader_without_data(self):
        loader = DataLoader(TensorDataset(self.x[:0], self.y[:0]))
        with pytest.raises(ValueError, match="data are empty"):
            self.make(data=loader)

    @pytest.mark.parametrize(
        ("model", "got"),
        [
            ("model.pt", r"'model\.pt': build the network, then load its weights"),
            (nn.Linear(4, 3).state_dict(), "OrderedDict: build the network"),
            (nn.Linear, "the class Linear: make an instance"),
            (7, "int"),
        ],
    )
    def test_no_model(self, model, got):
        with pytest.raises(TypeError, match=f"model must be a torch.nn.Module, got .*{got}"):
            self.make(model)

    def test_no_criterion(self):
        with pytest.raises(TypeError, match=r"criterion must be a function .* got 'mse'"):
            self.make(criterion="mse")

    def test_inputs_that_the_model_does_not_take(self):
        with pytest.raises(ValueError, match=r"torch.float32 of shape \(6, 5\), on which it"):
            self.make(data=(torch.randn(6, 5), self.y))

    def test_targets_of_another_length(self):
        with pytest.raises(ValueError, match=r"shape \(6, 3\) and targets of shape \(5,\)"):
            self.make(data=(self.x, self.y[:5]))

    def test_inputs_for_another_signature(self):
        for inputs in ((self.x, self.x), {"input_ids": self.x}):
            with pytest.raises(ValueError, match=r"must take the inputs .* on which it fails"):
                self.make(data=[(inputs, self.y)])

    def test_a_batch_that_does_not_fit_is_the_one_that_is_named(self):
        good, bad = (self.x, self.y), (torch.randn(6, 5), self.y)
        message = r"torch.float32 of shape \(6, 5\), on which it"
        with pytest.raises(ValueError, match=message):
            self.make(data=[good, bad]).evaluate()
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
        with pytest.raises(ValueError, match=message):
            self.make(model, data=[good, bad], batchnorm="refresh")

    def test_what_is_no_fault_of_the_inputs_keeps_its_name(self):
        class Endless(nn.Linear):
            def forward(self, x):
                return self(x)

        class Large(nn.Linear):
            def forward(self, x):
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        class Bare(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.ones(3))

        for kind, error in ((Endless, RecursionError), (Large, RuntimeError)):
            with pytest.raises(error) as caught:
                self.make(kind(4, 3))
            assert "must take the inputs" not in str(caught.value)
        with pytest.raises(NotImplementedError):
            self.make(Bare())

    def test_an_error_of_the_data_is_not_blamed_on_the_model(self):
        class Lacking(TensorDataset):
            def __getitem__(self, index):
                raise KeyError("no such file")

        with pytest.raises(KeyError, match="no such file"):
            self.make(data=DataLoader(Lacking(self.x, self.y)))

    @pytest.mark.parametrize(
        ("change", "got"),
        [
            (lambda x, y: [(x, y.numpy())], r"\(Tensor, ndarray\)"),
            (lambda x, y: (x.numpy(), y.numpy()), r"\(ndarray, ndarray\)"),
            (lambda x, y: (x, y.tolist()), r"\(Tensor, list\)"),
            (lambda x, y: DataLoader(x), "Tensor"),
            (lambda x, y: DataLoader([{"inputs": a} for a in x]), "dict"),
        ],
    )
    def test_targets_that_are_no_tensor(self, change, got):
        with pytest.raises(TypeError, match=f"tensor of targets, got {got}"):
            self.make(data=change(self.x, self.y))

    @pytest.mark.parametrize("shift", [-1, 1])
    def test_labels_without_an_output(self, shift):
        low, high = shift, 2 + shift
        message = f"labels from 0 to 2, .* 3 outputs, got labels from {low} to {high}"
        with pytest.raises(ValueError, match=message):
            self.make(data=(self.x, self.y + shift))
        good, bad = (self.x, self.y), (self.x, self.y + shift)
        with pytest.raises(ValueError, match=message):
            self.make(data=[good, bad]).loss()

    def test_labels_of_pixels_without_an_output(self):
        model, x = nn.Conv1d(4, 3, 1), torch.randn(6, 4, 5)
        good = torch.arange(30).reshape(6, 5) % 3
        with pytest.raises(ValueError, match="3 outputs, got labels from 0 to 7"):
            self.make(model, data=[(x, good), (x, good.where(good < 2, 7))]).loss()
        expected = F.cross_entropy(model(x), good).detach()
        found = self.make(model, data=[(x, good)]).loss()
        torch.testing.assert_close(found, expected, check_dtype=False)

    def test_targets_in_another_order_of_axes(self):
        model, x = nn.Conv1d(4, 5, 1), torch.randn(6, 4, 11)  # outputs (6, 5, 11)
        with pytest.raises((ValueError, RuntimeError), match="target size") as caught:
            self.make(model, data=(x, torch.full((6, 5), 7)))
        assert "labels from" not in str(caught.value)

    def test_shuffling_loader(self):
        loader = DataLoader(TensorDataset(self.x, self.y), shuffle=True)
        with pytest.raises(ValueError, match="shuffle=False"):
            self.make(data=loader)

    def test_summed_criterion(self):
        with pytest.raises(ValueError, match="mean over examples, got their sum"):
            self.make(criterion=nn.CrossEntropyLoss(reduction="sum"))

    def test_criterion_of_each_example(self):
        with pytest.raises(ValueError, match=r"scalar, got shape \(6,\)"):
            self.make(criterion=nn.CrossEntropyLoss(reduction="none"))

    def test_float_loss(self):
        with pytest.raises(TypeError, match="must return a tensor, got float"):
            self.make(criterion=lambda out, y: float(F.cross_entropy(out, y).detach()))

    def test_loss_without_gradient(self):
        with pytest.raises(ValueError, match="does not depend on theta"):
            self.make(criterion=lambda out, y: F.cross_entropy(out.detach(), y))

    def test_nan_loss(self):
        with pytest.raises(ValueError, match="must be finite, got nan"):
            self.make(data=(self.x * torch.nan, self.y))

    def test_pattern_that_matches_nothing(self):
        with pytest.raises(ValueError, match=r"no parameters match 'layer9\.\*'"):
            self.make(parameters="layer9.*")

    def test_unknown_batchnorm_policy(self):
        with pytest.raises(ValueError, match="batchnorm must be one of 'eval'"):
            self.make(batchnorm="train")

    def test_theta_of_another_size_or_type(self):
        objective = self.make()
        with pytest.raises(ValueError, match=r"shape \(15,\), got \(3,\)"):
            objective.loss(torch.zeros(3))
        with pytest.raises(ValueError, match=r"torch.float32 on cpu, got torch.float64"):
            objective.loss(torch.zeros(15, dtype=torch.float64))

    def test_accuracy_without_labels(self):
        objective = self.make(criterion=F.mse_loss, data=(self.x, torch.randn(6, 3)))
        assert objective.evaluate().accuracy is None
        with pytest.raises(ValueError, match="accuracy needs class labels"):
            objective.accuracy()


def test_loaders_that_leave_examples_out_are_counted_and_not_sampled_from():
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    model = nn.Linear(3, 2)

    class SecondHalf(torch.utils.data.BatchSampler):
        def __iter__(self):
            yield from (range(start, start + 5) for start in range(20, 40, 5))

        def __len__(self):
            return 4

    whole = torch.utils.data.TensorDataset(x, y)
    batches = SecondHalf(torch.utils.data.SequentialSampler(whole), 5, False)
    late = DataLoader(whole, batch_sampler=batches)

    def without_ones(rows):
        rows = [row for row in rows if float(row[0][0]) < 0.5] or rows[:1]
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    for loader, message in (
        (late, "in their order, where single ones are needed .*, got others"),
        (DataLoader(whole, 10, collate_fn=without_ones), "single examples are needed here"),
    ):
        objective = lc.Objective(model, F.cross_entropy, loader)
        read = torch.cat([targets for _, targets in objective.batches()])
        assert len(objective.example_values()[0]) == len(read) == objective.examples < 40
        with pytest.raises(ValueError, match=message):
            objective.sample(torch.tensor([0]))
    assert lc.Objective(model, F.cross_entropy, DataLoader(whole, 7)).examples == 40
    first = lc.Objective(model, F.cross_entropy, DataLoader(whole, 7, drop_last=True))
    assert first.examples == 35
    assert torch.equal(first.sample(torch.tensor([3]))[0], x[3:4])


def test_a_loader_that_reads_the_first_of_its_data_set_is_sampled_from():
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    first = torch.utils.data.BatchSampler(
        torch.utils.data.SequentialSampler(range(20)), 5, False
    )
    loader = DataLoader(TensorDataset(x, y), batch_sampler=first)
    objective = lc.Objective(nn.Linear(3, 2), F.cross_entropy, loader)
    assert objective.examples == 20
    assert torch.equal(objective.sample(torch.tensor([19]))[0], x[19:20])


def test_rows_that_go_missing_after_the_first_batch_are_not_sampled():
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    x[20:, 0] = torch.arange(20.0)

    def without_large(rows):
        rows = [row for row in rows if float(row[0][0]) < 12]
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    loader = DataLoader(TensorDataset(x, y), 10, collate_fn=without_large)
    objective = lc.Objective(nn.Linear(3, 2), F.cross_entropy, loader)
    assert objective.examples == 32
    with pytest.raises(ValueError, match=r"single ones are needed .*, got 32 of 40"):
        objective.sample(torch.tensor([39]))

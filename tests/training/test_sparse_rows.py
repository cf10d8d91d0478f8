"""Rows with a gradient follow the optimizer's formula; all other rows do not change."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcloop.training.sharded import coalesce, update_sparse_rows

ROWS, D, LR, DECAY = 7, 3, 0.1, 0.05
SAMPLES = [[0, 3, 6], [3, 4], [0, 3, 4, 5], [3], [], [0, 6]]
SGD = partial(torch.optim.SGD, lr=LR, weight_decay=DECAY, momentum=0.9, nesterov=True)
ADAMW = partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY, betas=(0.9, 0.99), eps=1e-8)


def loss_of(weight: nn.Parameter, rows: list[int], step: int) -> Tensor:
    """Return a loss whose gradient depends on the values of the rows and on the step."""
    taken = F.embedding(torch.tensor(rows, dtype=torch.int64), weight, sparse=True)
    return ((taken - step) ** 3).sum()


def sgd_oracle(weight: Tensor) -> Tensor:
    momentum = torch.zeros(ROWS, D, dtype=torch.float64)
    for step, rows in enumerate(SAMPLES):
        for row in rows:
            grad = 3 * (weight[row] - step) ** 2 + DECAY * weight[row]
            momentum[row] = 0.9 * momentum[row] + grad
            weight[row] -= LR * (grad + 0.9 * momentum[row])
    return weight


def adamw_oracle(weight: Tensor) -> Tensor:
    mean, square = (torch.zeros(ROWS, D, dtype=torch.float64) for _ in range(2))
    for step, rows in enumerate(SAMPLES):
        for row in rows:
            grad = 3 * (weight[row] - step) ** 2
            weight[row] *= 1 - LR * DECAY
            mean[row] = 0.9 * mean[row] + 0.1 * grad
            square[row] = 0.99 * square[row] + 0.01 * grad**2
            corrected = mean[row] / (1 - 0.9 ** (step + 1))
            scale = (square[row] / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8
            weight[row] -= LR * corrected / scale
    return weight


def make_weight() -> nn.Parameter:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(ROWS, D, dtype=torch.float64))


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize(
    ("factory", "oracle"), [(SGD, sgd_oracle), (ADAMW, adamw_oracle)], ids=["sgd", "adamw"]
)
def test_rows_follow_the_formula_and_others_do_not_change(factory, oracle, with_closure):
    weight = make_weight()
    optimizer = update_sparse_rows(factory([weight]))
    for step, rows in enumerate(SAMPLES):
        before = weight.detach().clone()

        def closure(step=step, rows=rows) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(weight, rows, step)
            loss.backward()
            return loss

        if with_closure:
            assert optimizer.step(closure) == loss_of(nn.Parameter(before), rows, step)
        else:
            closure()
            optimizer.step()
        still = [row for row in range(ROWS) if row not in rows]
        assert torch.equal(weight[still], before[still])
        assert optimizer.param_groups[0]["params"][0] is weight
        assert list(optimizer.state) == [weight]
    torch.testing.assert_close(weight.detach(), oracle(make_weight().detach()))


@pytest.mark.parametrize("factory", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_resumed_optimizer_ends_with_the_same_bytes(factory):
    def step_through(weight, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            loss_of(weight, SAMPLES[step], step).backward()
            optimizer.step()

    whole = make_weight()
    step_through(whole, update_sparse_rows(factory([whole])), range(6))
    first, second = make_weight(), make_weight()
    optimizer = update_sparse_rows(factory([first]))
    step_through(first, optimizer, range(3))
    second.data.copy_(first)
    resumed = update_sparse_rows(factory([second]))
    resumed.load_state_dict(optimizer.state_dict())
    step_through(second, resumed, range(3, 6))
    assert torch.equal(whole, second)


def test_gradients_of_several_batches_add_up():
    weight, dense = make_weight(), make_weight()
    optimizer, plain = update_sparse_rows(SGD([weight])), torch.optim.SGD([dense], lr=LR)
    optimizer.param_groups[0].update(momentum=0.0, nesterov=False, weight_decay=0.0)
    for rows in ([1, 4, 5], [0, 4]):
        loss_of(weight, rows, 1).backward()
        ((dense[rows] - 1) ** 3).sum().backward()
    assert weight.grad.is_sparse
    torch.testing.assert_close(coalesce(weight.grad).to_dense(), dense.grad)
    assert coalesce(weight.grad).indices().tolist() == [[0, 1, 4, 5]]
    optimizer.step()
    plain.step()
    torch.testing.assert_close(weight, dense)


def test_dense_gradients_are_updated_as_without_hooks():
    hooked, plain = make_weight(), make_weight()
    optimizers = update_sparse_rows(ADAMW([hooked])), ADAMW([plain])
    for _ in range(3):
        for weight, optimizer in zip((hooked, plain), optimizers, strict=True):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()
    assert torch.equal(hooked, plain)


def test_gradient_of_one_backward_pass_is_not_copied():
    weight = make_weight()
    loss_of(weight, [1, 4], 0).backward()
    values = weight.grad._values()
    assert coalesce(weight.grad).values().data_ptr() == values.data_ptr()

"""8-bit AdamW with the real library: `make test-extras`."""

import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.step.shapes import llava_config
from model.backbones.llama import LlavaLlamaForCausalLM
from model.hub.weights import set_trainable
from pipeline.config import TrainingConfig, load_config, parse_config
from pipeline.launch.run import run_training
from pipeline.tools.estimate.memory import estimate_memory
from pipeline.training.optim import build_optimizer, set_learning_rate
from tests.integration.conftest import WriteConfig
from tests.integration.runs import assert_same_run, losses, run, start, wait_for_steps

EIGHT_BIT = "training.optimizer=adamw_8bit"


def train(optimizer: str, num_steps: int) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    """Fit a network to another one: layers of 4699 and 851 weights, so that one is quantized and one is not."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(37, 127), nn.GELU(), nn.Linear(127, 37), nn.GELU(), nn.Linear(37, 23))
    inputs, targets = torch.randn(67, 37), torch.randn(67, 23)
    settings = {"global_batch_size": 1, "learning_rate": 5e-3, "weight_decay": 0.1, "optimizer": optimizer}
    built = build_optimizer(model, TrainingConfig.model_validate(settings))
    history = []
    for step in range(num_steps):
        built.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        set_learning_rate(built, 1.0 - step / num_steps)
        built.step()
        history.append(loss.item())
    return model, built, history


def test_eight_bit_adamw_follows_adamw_and_its_loss_falls() -> None:
    torch.manual_seed(5)
    start_weights = [weight.clone() for weight in train("adamw", 0)[0].parameters()]
    (exact, _, exact_loss), (ours, optimizer, loss) = train("adamw", 11), train("adamw_8bit", 11)
    assert loss[-1] < 0.9 * loss[0]
    assert loss == pytest.approx(exact_loss, rel=2e-3)
    for begun, one, other in zip(start_weights, exact.parameters(), ours.parameters(), strict=True):
        assert (one - other).norm() < 0.03 * (one - begun).norm()
    dtypes = {weight.numel(): optimizer.state[weight]["state2"].dtype for weight in ours.parameters()}
    assert dtypes[4699] == torch.uint8
    assert dtypes[851] == torch.float32


@pytest.mark.chaos
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_killed_run_resumes_bitwise(write_config: WriteConfig, tmp_path: Path, stage: str) -> None:
    run_training(load_config(write_config("calm", stage), [EIGHT_BIT]))
    config = write_config("killed", stage)
    process = start("jobs", stage, "--config", str(config), EIGHT_BIT)
    wait_for_steps(tmp_path / "killed", 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = sorted((tmp_path / "killed" / "checkpoints").glob("step-*/optimizer.safetensors"))
    assert torch.uint8 in {tensor.dtype for tensor in load_file(saved[-1]).values()}
    run("jobs", stage, "--config", str(config), EIGHT_BIT)
    assert len(losses(tmp_path / "killed")) == 7
    assert_same_run(tmp_path / "calm", tmp_path / "killed")


def test_estimate_is_the_size_of_the_moments() -> None:
    with torch.device("meta"):
        skeleton = LlavaLlamaForCausalLM(llava_config("tiny"))
    set_trainable(skeleton, "finetune")
    twins = [nn.Parameter(torch.zeros(weight.shape)) for weight in skeleton.parameters() if weight.requires_grad]
    settings: dict[str, Any] = {"global_batch_size": 1, "learning_rate": 1e-3, "optimizer": "adamw_8bit"}
    optimizer = build_optimizer(nn.ParameterList(twins), TrainingConfig.model_validate(settings))
    for twin in twins:
        twin.grad = torch.ones_like(twin)
    optimizer.step()
    sizes: dict[str, int] = defaultdict(int)
    for state in optimizer.state.values():
        for name, value in state.items():
            sizes[name] += value.nbytes if isinstance(value, torch.Tensor) else 0
    config = parse_config(
        {
            "name": "run", "run_dir": "run", "stage": "finetune", "data": {"shards": ["a.tar"]},
            "model": {"language_model": "lm"}, "training": settings,
        },
        where="test",
    )  # fmt: skip
    moments = sum(size for name, size in sizes.items() if not name.startswith("qmap"))
    assert estimate_memory(skeleton, config.recipe, 1, 4096, use_gpu=config.cluster.use_gpu).optimizer == pytest.approx(
        moments, rel=1e-4
    )

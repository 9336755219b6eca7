import numpy as np
import torch

from benchmarks.step.baseline import collate
from benchmarks.step.scenarios import SCENARIOS, BaselineSettings
from benchmarks.step.workloads import (
    MAX_LENGTH,
    TextSize,
    build_rank_step,
    caption_sizes,
    instruction_sizes,
    plan_of,
    random_text,
)
from model.fusion.resolution import Resolution
from pipeline.training.batches import prepare


def test_sizes_same_seed_same_samples_and_within_limits() -> None:
    assert caption_sizes(503, seed=1) == caption_sizes(503, seed=1) != caption_sizes(503, seed=2)
    sizes = instruction_sizes(2003, seed=3, features_per_image=576)
    assert sizes == instruction_sizes(2003, seed=3, features_per_image=576)
    fused = np.array([size.fused(576).num_tokens for size in sizes])
    assert fused.max() <= MAX_LENGTH
    assert 750 < fused.mean() < 950
    assert 0.03 < np.mean([size.num_images == 0 for size in sizes]) < 0.1


def test_random_text_has_one_placeholder_per_image_and_supervises_the_end() -> None:
    ids, labels = random_text(TextSize(num_text_tokens=11, num_images=2, num_targets=5), 97, np.random.default_rng(1))
    assert (len(ids), (ids == -200).tolist()) == (13, [False, True, True] + [False] * 10)
    assert (labels != -100).tolist() == [False] * 8 + [True] * 5
    assert labels[8:].tolist() == ids[8:].tolist()


def test_both_sides_train_on_the_same_tokens() -> None:
    sizes = [TextSize(7, 1, 3), TextSize(13, 0, 5), TextSize(5, 1, 2), TextSize(29, 0, 11), TextSize(3, 1, 1)]
    plan = plan_of(sizes, features_per_image=4, global_batch_size=5, token_budget=64)
    rank_step = build_rank_step(plan, 0, sizes, "tiny")
    prepared = prepare(rank_step, Resolution("pad", 28, 4, 2), torch.device("cpu"))
    settings = BaselineSettings(batch_size=3, gradient_checkpointing=False, group_by_length=True)
    padded = collate(rank_step, plan.samples(0).tolist(), settings, 4, torch.device("cpu"))
    assert prepared.counts.tokens == sum(int(batch.attention_mask.sum()) for batch in padded) == 57 + 3 * 4
    targets = [batch.labels[batch.labels != -100] for batch in padded]
    packed = [batch.packed.targets for batch in prepared.micro_batches]
    assert sorted(torch.cat(targets).tolist()) == sorted(torch.cat(packed).tolist())
    assert [batch.input_ids.shape[1] for batch in padded] == [11, 29]
    assert sum(len(batch.pixel_values) for batch in padded if batch.pixel_values is not None) == 3


def test_full_scenarios_pack_almost_without_waste() -> None:
    for scenario in SCENARIOS["full"]:
        sizes = scenario.sizes()
        budget = scenario.ours[0].micro_batch_tokens
        plan = scenario.plan(sizes, budget)
        batches = [batch for step in range(plan.total_steps) for batch in plan.split(step, 1)[0].micro_batches]
        tokens = [sum(int(plan.num_tokens[sample]) for sample in batch) for batch in batches]
        assert max(tokens) <= budget
        assert plan.total_steps == scenario.num_steps + scenario.num_warmup_steps

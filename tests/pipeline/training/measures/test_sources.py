"""Per-source sums: of losses on the device, of counts over a rank-step, named after summing over ranks."""

import numpy as np
import torch

from model.fusion.constants import IGNORE_INDEX
from model.llava.loss import cross_entropy_sum
from pipeline.plan.sources import NO_MIX, Sources
from pipeline.stream.rank_step import RankStep
from pipeline.training.measures.sources import SourceNumbers, describe_sources, sum_by_source, tally_sources

SOURCES = Sources(("captions", "chat", "text"), (10, 20, 30))


def make_rank_step(sample_ids: list[int], text_lengths: list[int]) -> RankStep:
    none = torch.zeros(0, dtype=torch.int32)
    return RankStep(
        step=0,
        rank=0,
        checksum=0,
        sample_ids=torch.tensor(sample_ids),
        batch_sizes=none,
        text_lengths=torch.tensor(text_lengths),
        num_images=none,
        image_ids=none,
        input_ids=none,
        labels=none,
        views=none,
        pixels=none,
        rejected=(),
    )


def test_sum_by_source_adds_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(3)
    losses, sources = torch.rand(97, generator=generator), torch.randint(0, 3, (97,), generator=generator)
    found = sum_by_source(losses, sources, 3)
    expected = np.bincount(sources.numpy(), weights=losses.numpy(), minlength=3)
    torch.testing.assert_close(found, torch.from_numpy(expected).float())
    assert sum_by_source(losses, torch.zeros(97, dtype=torch.int64), 0).shape == (0,)


def test_tally_sources_counts_trained_rejected_and_targets() -> None:
    labels = [torch.tensor([7, 5, 5]), torch.tensor([], dtype=torch.int64), torch.tensor([IGNORE_INDEX, 3])]
    tally = tally_sources(make_rank_step([25, 3, 9], [3, 0, 2]), labels, SOURCES)
    assert list(tally.counts) == [1, 0, 1, 1, 0, 0, 1, 0, 2]  # the first label has nothing that predicts it
    assert tally.of_targets([0, 2]).tolist() == [2, 2, 0]
    assert tally.of_targets([]).tolist() == []


def test_tally_sources_without_a_mix_counts_nothing() -> None:
    tally = tally_sources(make_rank_step([25], [2]), [torch.tensor([7, 5])], NO_MIX)
    assert not tally.counts
    assert tally.of_targets([0]).tolist() == [0]


def test_describe_sources_names_the_sums() -> None:
    counts, losses = [5.0, 0.0, 1.0, 1.0, 0.0, 0.0, 11.0, 0.0, 2.0], [1.5, 0.0, 0.25]
    assert describe_sources(SOURCES, counts, losses) == {
        "captions": SourceNumbers(5, 1, 11, 1.5),
        "chat": SourceNumbers(0, 0, 0, 0.0),
        "text": SourceNumbers(1, 0, 2, 0.25),
    }
    assert describe_sources(NO_MIX, [], []) == {}


def test_cross_entropy_sum_fills_in_the_loss_of_each_target() -> None:
    generator = torch.Generator().manual_seed(5)
    hidden, weight = (torch.randn(rows, 11, generator=generator, requires_grad=True) for rows in (23, 17))
    targets, each = torch.randint(0, 17, (23,), generator=generator), torch.zeros(23)
    loss = cross_entropy_sum(hidden, weight, targets, chunk_rows=7, target_losses=each)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(each, expected.detach())
    alone = cross_entropy_sum(hidden, weight, targets, chunk_rows=7)
    assert loss.item() == alone.item()
    loss.backward()
    assert not each.requires_grad
    assert hidden.grad is not None

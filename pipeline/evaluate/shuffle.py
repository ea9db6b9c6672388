"""The control: the labels of whole groups are shuffled, and a protocol without a leak has to fall to chance.

Shuffling sample by sample is no control where samples come in groups. A slide whose patches both train and test can
be recognised, and its patches have one label: the accuracy is 1 without any biology. After a shuffle of patches nothing
about a slide says anything about a patch's label, so the control looks like chance and the leak stays unseen. After a
shuffle of slides the patches of one slide still share a label, and the leak shows at full height.
"""

import numpy as np
import numpy.typing as npt

FEW = 20
"""Of fewer groups a shuffle may by chance leave most labels as they are: of four in two classes, one in six does."""


def shuffled(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64] | None, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Labels in which every group has the labels of a group that was drawn for it, each group being drawn once.

    The labels of a group move as one block, in their order. Into a group of another size the block is stretched: sample
    i of n takes label ``i * m // n`` of the m in the block. So labels that vary within a group keep their shares and
    their order (neighbouring patches still tend to agree), and a group of one label stays one.

    Parameters
    ----------
    labels : int (n,)
    groups : int (n,), optional
        None shuffles sample by sample.
    """
    if groups is None:
        return rng.permutation(labels)
    order = np.argsort(groups, kind="stable")
    blocks = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    result = np.empty_like(labels)
    for rows, drawn in zip(blocks, rng.permutation(len(blocks)).tolist(), strict=True):
        block = labels[blocks[drawn]]
        result[rows] = block[np.arange(len(rows)) * len(block) // len(rows)]
    return result


def shuffle_note(
    labels: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64] | None,
    name: str,
) -> str:
    """What was shuffled, and how many samples have another label now: with few groups it may be hardly any."""
    other = f"{(labels != after).mean():.0%} of the samples have another label now"
    if groups is None:
        return f"control: labels were shuffled sample by sample; {other}"
    n_groups = len(np.unique(groups))
    few = "; so few groups can land near their own labels: look at several seeds" if n_groups < FEW else ""
    return f"control: labels of {n_groups} whole groups ({name}) were shuffled; {other}{few}"

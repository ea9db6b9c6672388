"""How many directions embeddings use: a figure that falls when an encoder collapses."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.checks import require_features


def effective_rank(x: npt.NDArray[Any]) -> float:
    """``exp(entropy of p)``, p the singular values of the features, scaled to sum to 1.

    Roy & Vetterli, EUSIPCO 2007; of embeddings as they are, not centred, as RankMe has it (Garrido et al., arXiv
    2210.02885, equation 1, without its epsilon). It is 1 where all embeddings lie on a line through 0, such as those of
    an encoder that gives every image the same, and d where all d directions count alike.

    Parameters
    ----------
    x : (n, d)

    >>> round(effective_rank(np.eye(4)), 3), round(effective_rank(np.ones((5, 4))), 3)
    (4.0, 1.0)

    Raises
    ------
    EvaluationError
        When a value is not finite.
    """
    require_features("features", x)
    values = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    shares = values / max(values.sum(), np.finfo(np.float64).tiny)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))

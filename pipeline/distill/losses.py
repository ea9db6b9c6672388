"""Losses between the student's outputs for a batch and the teacher's.

Shapes: B views, N rows (views or patch tokens), D the teacher's dimensions, S the student's, K prototypes. Inputs are
float32; every loss returns a scalar.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-5
_KOLEO_EPS = 1e-8
_LEAST = 1e-12


def log_sum(s_BD: Tensor, t_BD: Tensor, alpha: float = 4.0, eps: float = EPS) -> Tensor:
    """``log(sum over batch and dimensions of |s - t|^alpha + eps)``: one log over the whole batch.

    Miles & Mikolajczyk, arXiv 2303.11098, in the form of their ``torchdistill/losses/single.py``, which G2L's
    formula matches. The eps is added here, since the loss is unbounded below. Two independent unit-normal inputs
    give about ``log(12 * B * D)`` for alpha = 4: 13.29 for B = 32, D = 1536.
    """
    return torch.log((s_BD - t_BD).abs().pow(alpha).sum() + eps)


def log_sum_corr(s_BD: Tensor, t_BD: Tensor, alpha: float = 4.0, eps: float = EPS) -> Tensor:
    """``log(sum over dimensions of |c_d - 1|^alpha + eps)``, c_d the correlation of s and t over the batch.

    The other form in Miles & Mikolajczyk's code (``deit/models.py``, there with alpha 4): one number for each
    dimension, where `log_sum` has one for each dimension of each view. It starts near ``log(D)``, 7.34 for D = 1536,
    where nothing is correlated, and ends at ``log(eps)``. A correlation does not depend on the scale and mean of a
    dimension, so normalised and raw targets give the same. A dimension that is constant over the batch counts as
    uncorrelated. With two views each correlation is 1 or -1: take batches of many.
    """
    correlation_D = functional.cosine_similarity(s_BD - s_BD.mean(0), t_BD - t_BD.mean(0), dim=0)
    return torch.log((correlation_D - 1).abs().pow(alpha).sum() + eps)


def cosine(s_ND: Tensor, t_ND: Tensor) -> Tensor:
    """``1 - mean over the rows of cos(s, t)``."""
    return 1 - functional.cosine_similarity(s_ND, t_ND, dim=1).mean()


def relational(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """Mean squared difference of the two batches' cosine-similarity matrices.

    Similarity-preserving distillation (Tung & Mori, arXiv 1907.09682, equation 4) with another normalisation: there
    the rows of the matrices of inner products have length 1, here the features do, so that each entry is a cosine.
    Relational distillation (Park et al., arXiv 1904.05068) compares distances and angles, which this does not.
    """
    s, t = functional.normalize(s_BD, dim=1), functional.normalize(t_BD, dim=1)
    return functional.mse_loss(s @ s.T, t @ t.T)


def infonce(s_BD: Tensor, t_BD: Tensor, temperature: float = 0.1, places_B: Tensor | None = None) -> Tensor:
    """Cross entropy of recognising each view's target among those of the batch, and each target's view among the views.

    ``(CE(z) + CE(z^T)) / 2`` with ``z_ij = cos(s_i, t_j) / temperature``, the right answer on the diagonal: InfoNCE
    (van den Oord et al., arXiv 1807.03748, equation 4) in both directions, as OMNI has it (prism-oncology/OMNI
    ``omni/losses.py``; temperature 0.1, weight 0.1 beside cosine and smooth-l1). It starts near ``log(B)`` where D is
    large. All other views of the batch count as wrong answers, also other seeds of the same patch.

    Parameters
    ----------
    places_B
        Number of the place that each view shows, -1 for none: views of one place are no wrong answers for each other.
    """
    z_BB = functional.normalize(s_BD, dim=1) @ functional.normalize(t_BD, dim=1).T / temperature
    if places_B is not None:
        same_BB = (places_B[:, None] == places_B) & (places_B >= 0)
        z_BB = z_BB.masked_fill(same_BB.fill_diagonal_(False), -torch.inf)
    right = torch.arange(len(z_BB), device=z_BB.device)
    return (functional.cross_entropy(z_BB, right) + functional.cross_entropy(z_BB.T, right)) / 2


def feature_loss(name: str, alpha: float, temperature: float = 0.1) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a term of `pipeline.distill.loss_spec.FEATURE_TERMS`.

    Parameters
    ----------
    alpha
        Exponent of both forms of log-sum.
    temperature
        That of infonce.
    """
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "log-sum": partial(log_sum, alpha=alpha),
        "log-sum-corr": partial(log_sum_corr, alpha=alpha),
        "mse": functional.mse_loss,
        "l1": functional.l1_loss,
        "smooth-l1": functional.smooth_l1_loss,
        "cosine": cosine,
        "relational": relational,
        "infonce": partial(infonce, temperature=temperature),
    }
    return losses[name]


def assignment(logits_NK: Tensor, targets_NK: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the student's assignments to the teacher's, averaged over the rows.

    Caron et al., arXiv 2104.14294, equation 2 (DINO); Zhou et al., arXiv 2111.07832, equation 2 (iBOT), over all kept
    tokens instead of masked ones, as DINOv2 distils (arXiv 2304.07193, section 5).

    Parameters
    ----------
    logits_NK
        Cosine similarities of the student's rows to its prototypes.
    targets_NK
        Probabilities.
    """
    return -(targets_NK * functional.log_softmax(logits_NK / temperature, dim=1)).sum(dim=1).mean()


def sharpened(similarity_NK: Tensor, centre_K: Tensor, temperature: float) -> Tensor:
    """The teacher's assignments: softmax of its similarities, less their mean `centre_K`."""
    return functional.softmax((similarity_NK - centre_K) / temperature, dim=1)


def sinkhorn(similarity_NK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """The teacher's assignments, balanced over the prototypes within these rows (Cuturi, arXiv 1306.0895).

    As in SwAV (arXiv 2006.09882, appendix A) and DINOv2: columns and rows of ``exp(similarity / temperature)`` are
    scaled alternately, rows last. Then each row sums to 1, and all prototypes have about equal shares. Computed with
    logarithms, since the exponentials overflow float32 below a temperature of about 0.012.
    """
    log_q = similarity_NK / temperature
    for _ in range(iterations):
        log_q = log_q - torch.logsumexp(log_q, dim=0, keepdim=True)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()


def attention_kl(s_BP: Tensor, t_BP: Tensor) -> Tensor:
    """``mean over the views of sum over patches of t log(t / s)``, both scaled to sum to 1 over the patches first.

    Wang et al., arXiv 2002.10957 (MiniLM), equation 4, for the row of the class token and the mean over heads, so that
    student and teacher may have different numbers of heads and registers: what goes to class token and registers is
    left out on both sides.
    """
    t = t_BP / t_BP.sum(dim=1, keepdim=True)
    log_s = torch.log(s_BP.clamp(min=_LEAST)) - torch.log(s_BP.sum(dim=1, keepdim=True).clamp(min=_LEAST))
    return functional.kl_div(log_s, t, reduction="batchmean")


def koleo(e_BS: Tensor) -> Tensor:
    """``-mean over the batch of log(distance to the nearest other)``, of features on the unit sphere.

    Sablayrolles et al., arXiv 1806.03198, equation 2, as in DINOv2 (weight 0.1 there).
    """
    unit = functional.normalize(e_BS, dim=1)
    with torch.no_grad():
        similarity = unit @ unit.T
        similarity.fill_diagonal_(-2)
        nearest = similarity.argmax(dim=1)
    distance = functional.pairwise_distance(unit, unit[nearest], eps=_KOLEO_EPS)
    return -torch.log(distance + _KOLEO_EPS).mean()

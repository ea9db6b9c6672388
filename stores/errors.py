"""Every error that the project raises on purpose, in one tree.

A message is one line: the value, what was allowed, what to do. ``exit_code`` is what the command line returns. A
command that finished although some slides failed returns `SOME_SLIDES_FAILED`.
"""

SOME_SLIDES_FAILED = 3


class G2LError(Exception):
    """Base of all errors that end in one line instead of a traceback."""

    exit_code = 2

    def __str__(self) -> str:
        """The message as one line, although names and values in it may come from elsewhere."""
        return " ".join(super().__str__().splitlines())


class OptionError(G2LError):
    """An option has a value that is not allowed."""


class SlideError(G2LError):
    """A slide cannot be used. The command continues; the slides table gives the reason."""


class MppError(SlideError):
    """A slide has no mpp, or one outside of the plausible window."""


class ReadError(SlideError):
    """A patch or thumbnail could not be read from a slide that opened."""


class TissueError(SlideError):
    """A mask or GeoJSON given by the user does not fit its slide."""


class EncoderError(G2LError):
    """An encoder is unknown or cannot be built as asked."""


class WeightsError(EncoderError):
    """Weights are missing, gated, incomplete or of another architecture."""


class StoreError(G2LError):
    """A store is missing, incomplete or not what a command needs."""


class RecipeMismatch(StoreError):
    """Two recipes differ; the message names the field and both values."""


class CorruptStore(StoreError):
    """A store contradicts itself: a missing chunk, a bad checksum, a wrong shape, NaN in a committed row."""


class ViewMismatch(G2LError):
    """A rebuilt view differs from the one that the teacher saw."""


class FeatureError(G2LError):
    """A teacher returned features that cannot be stored (not finite, or beyond float16)."""


class DistillError(G2LError):
    """Training cannot continue: the loss is not finite, or a checkpoint is of another run."""


class EvaluationError(G2LError):
    """Embeddings or labels on which a protocol is not defined: not finite, one class, too few neighbours."""


class DiskFull(G2LError):
    """There is not enough room; everything that was committed is kept."""


class ClusterError(G2LError):
    """The workers cannot be reached, or all of them fail."""

"""Options of ``embed``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import option, require, require_machine, require_weights

FORMATS = ("parquet", "trident-h5", "clam", "eva", "plism")


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """Deployment: any encoder over slides or tiles."""

    encoder: str = option(
        "", "Preset, timm name, hf-hub:owner/name, a run's student folder, or module:function."
    )
    format: str = option("parquet", "Who reads the embeddings.", FORMATS)
    pooling: str | None = option(
        None, "cls, or cls+mean of the patch tokens; the encoder's own.", ("cls", "cls+mean")
    )
    weights: Path | None = option(None, "Checkpoint file or folder, instead of the published weights.")
    random_weights: int | None = option(None, "Seed of random weights: the untrained encoder.")
    batch_size: int | None = option(None, "Views per forward pass; 256 on a GPU, 16 on a CPU.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option("auto", "Arithmetic of the forward pass.", ("auto", "float32", "bfloat16", "float16"))
    threads: int | None = option(None, "Workers that read and render; the number of CPUs.")
    readers: str = option(
        "auto",
        "What reads and renders: threads, or processes, which leave Python to the device; processes beside a GPU.",
        ("auto", "threads", "processes"),
    )
    compile: bool = option(
        False, "Compile the encoder first (torch.compile): half a minute and more, then faster."
    )
    column: tuple[str, ...] = option(
        (), "Of a CSV of tiles: what a column is, as path=tile or label=density; may be repeated."
    )
    root: Path | None = option(None, "Folder that the paths in a CSV of tiles start from; the CSV's own.")
    fit: str = option(
        "resize",
        "Tiles of another size than the encoder takes: shorter side resized and centre cropped, or only cropped.",
        ("resize", "crop"),
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(
            bool(self.encoder), "encoder", "(missing)", "a preset (see `g2l models`) or a model of your own"
        )
        require(self.format in FORMATS, "format", self.format, ", ".join(FORMATS))
        require_machine(self)
        require_weights(self)
